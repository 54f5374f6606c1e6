"""What another order of the same videos would have been worth.

From requests whose positions the log drew at random, with known propensity.

Estimand: the mean over those requests of sum_i E[r_i | video i stands at the
position that the new ranking gives it]; r_i is a click, or watch seconds.
Assumption: a video's reward depends on itself, the request and its own
position, not on its neighbours (the item-position model of Li et al. 2018).
A position is one that the request has in the log; the ranking fills them in
rising order. With p_i the logged probability that video i stood where it did
and pi_i(k) that of the new ranking to put it at k, w_i = pi_i(k_i) / p_i:

  IPS   sum_i w_i r_i, unbiased if every position had a chance (Joachims,
        Swaminathan and Schnabel 2017);
  SNIPS that over sum_i w_i, whose expectation is the number of videos: less
        noise, a bias of the order 1 / requests (Swaminathan, Joachims 2015);
  doubly robust  sum_i [sum_k pi_i(k) q_i(k) + w_i (r_i - q_i(k_i))] with a
        model q of the reward (Dudik et al. 2011): unbiased for any q, and
        the better q, the less noise.

q_i(k) = a_k m_i: what the ranking predicts of video i without a position,
times a factor of the position, summed rewards over summed predictions at k.
A request's factors come from the other half of the requests, so that they
are independent of its rewards.
"""

import dataclasses

import numpy as np

from models.ranking_metrics import Ratio

Estimates = dict[str, Ratio]


@dataclasses.dataclass(frozen=True)
class RandomizedLog:
    """The impressions of requests with positions drawn at random.

    All arrays are [n] and sorted by request.

    Attributes:
      rows: int64, the impression's number in the log it was taken from.
      request: int64, from 0.
      place: int64, from 0: the rank of its position in its request.
      propensity: float64, of the video at this position; above 0.
    """

    rows: np.ndarray
    request: np.ndarray
    place: np.ndarray
    propensity: np.ndarray

    @classmethod
    def of(
        cls,
        request_key: np.ndarray,
        position: np.ndarray,
        propensity: np.ndarray,
    ) -> "RandomizedLog":
        """Takes the requests in which every position was left to chance.

        All propensities of such a request are above 0 and below 1, and its
        positions are known and differ. Which requests these are must not
        hang on what was drawn: the propensity of a shuffled request of two
        or more videos is below 1 wherever they land.

        Args:
          request_key: integer [n], equal for the impressions of a request.
          position: int64 [n] from 1, 0 where not known.
          propensity: float [n], NaN where not known.
        """
        code = np.unique(request_key, return_inverse=True)[1]
        order = np.lexsort((position, code))
        new = np.ones(len(code), bool)
        new[1:] = np.diff(code[order]) > 0
        twice = ~new
        twice[1:] &= np.diff(position[order]) == 0
        with np.errstate(invalid="ignore"):
            drawn = (propensity > 0.0) & (propensity < 1.0) & (position > 0)
        bad = ~drawn[order] | twice
        lost = np.bincount(code[order], bad, minlength=len(code)) > 0
        rows = order[~lost[code[order]]]
        request = np.unique(code[rows], return_inverse=True)[1]
        return cls(
            rows,
            request,
            np.arange(len(rows)) - np.searchsorted(request, request),
            np.asarray(propensity, np.float64)[rows],
        )

    @property
    def requests(self) -> int:
        """How many."""
        return int(self.request[-1]) + 1 if len(self.request) else 0


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a ranking puts each video: all places of a tie are as likely.

    So a tie is not decided by the order in the log, which the rewards of the
    log hang on.

    Attributes:
      first, end: int64 [n], the places first .. end - 1.
    """

    first: np.ndarray
    end: np.ndarray

    @classmethod
    def by(cls, score: np.ndarray, request: np.ndarray) -> "Placement":
        """Largest score first, within each request."""
        order = np.lexsort((-score, request))
        ranked, owner = score[order], request[order]
        new = np.ones(len(order), bool)
        new[1:] = (np.diff(owner) != 0) | (np.diff(ranked) != 0)
        starts = np.flatnonzero(new)
        tie = np.cumsum(new) - 1
        begin = np.searchsorted(owner, owner)
        first, end = np.empty((2, len(order)), np.int64)
        first[order] = starts[tie] - begin
        end[order] = np.append(starts[1:], len(order))[tie] - begin
        return cls(first, end)

    def probability(self, place: np.ndarray) -> np.ndarray:
        """That a video stands at `place`, [n]."""
        inside = (place >= self.first) & (place < self.end)
        return inside / (self.end - self.first)

    def mean(self, of_place: np.ndarray) -> np.ndarray:
        """Each video's expectation of a value that its place has.

        Args:
          of_place: float64 [n, places].
        """
        sums = np.concatenate(
            [np.zeros((len(of_place), 1)), np.cumsum(of_place, axis=1)], axis=1
        )
        row = np.arange(len(of_place))
        total = sums[row, self.end] - sums[row, self.first]
        return np.asarray(total / (self.end - self.first))


def estimates(
    log: RandomizedLog,
    score: np.ndarray,
    reward: np.ndarray,
    predicted: np.ndarray | None,
) -> Estimates:
    """Estimates the reward per request of ranking by a score.

    Args:
      log: n impressions.
      score: float [n], of the new ranking; it must not know the position.
      reward: float [n].
      predicted: float [n], at least 0: the reward as predicted without the
        position; None: no doubly robust estimate.

    Returns:
      Ratios over impressions (the denominators add up to the requests):
      `as_shown`, the reward in the log; `ips`; `snips`; `doubly_robust`.
    """
    placement = Placement.by(score, log.request)
    weight = placement.probability(log.place) / log.propensity
    videos = np.bincount(log.request)[log.request]
    of_request = 1.0 / videos
    per_request = len(reward) / max(log.requests, 1)
    found = {
        "as_shown": Ratio(reward, of_request),
        "ips": Ratio(weight * reward, of_request),
        "snips": Ratio(weight * reward * per_request, weight),
    }
    if predicted is not None:
        factors = _position_factors(log, reward, predicted)
        expected = predicted[:, None] * factors
        logged = expected[np.arange(len(reward)), log.place]
        found["doubly_robust"] = Ratio(
            placement.mean(expected) + weight * (reward - logged), of_request
        )
    return found


def _position_factors(
    log: RandomizedLog, reward: np.ndarray, predicted: np.ndarray
) -> np.ndarray:
    """a_k of each impression, float64 [n, places], from the other half.

    Halves are every other request: their order is that of stable hashes.
    """
    half, places = log.request % 2, int(log.place.max(initial=0)) + 1
    factors = np.zeros((2, places))
    for other in (0, 1):
        rows = half != other
        rewards, predictions = (
            np.bincount(log.place[rows], values[rows], places)
            for values in (reward, predicted)
        )
        # Where the other half has nothing, q = 0 leaves plain IPS.
        told = predictions > 0.0
        factors[other, told] = rewards[told] / predictions[told]
    return factors[half]
