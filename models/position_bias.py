"""The shallow tower of position bias (Zhao et al. 2019, section 4.3).

A video at the top is clicked more often because it is at the top, and how much
more depends on the screen and on the place it is shown. A logit of position x
device x surface, added to the click's logit in training only, takes that
share of the clicks, so that the main tower does not learn it. When ranking,
positions are not known yet: the bias is then that of "not known", which is
learnt from impressions whose position was dropped.
"""

from models.keras_setup import tf
from models.random_rows import row_uniform

# Positions from here on share one bias; 0 is "not known".
LAST_POSITION = 100
# Keys this dropout apart from that of the layers 0, 1, ...
_SALT = 1000


class PositionBias(tf.Module):
    """A logit per (position, device, surface), zero at first.

    Args:
      devices: size of the device vocabulary, 0 if the log has none.
      surfaces: size of the surface vocabulary, 0 if the log has none.
      dropout: share of positions that training takes as not known.
      seed: of the dropout.
    """

    def __init__(
        self, devices: int, surfaces: int, dropout: float, seed: int
    ) -> None:
        super().__init__(name="position_bias")
        self._dropout, self._seed = dropout, seed
        self.logits = tf.Variable(
            tf.zeros([LAST_POSITION + 1, devices + 1, surfaces + 1]),
            name="position_bias",
        )

    def seen_positions(
        self,
        position: tf.Tensor,
        step: tf.Tensor | int,
        first_row: tf.Tensor | int,
    ) -> tf.Tensor:
        """Drops positions: a pure function of seed, step and global row.

        Args:
          position: int64 [B, C] from 1, 0 where not known.
          step: int64 [].
          first_row: int64 [], index in the global batch of the first request.

        Returns:
          int64 [B, C], 0 where dropped.
        """
        uniform = row_uniform(
            tf.shape(position), (self._seed, step, _SALT), first_row
        )
        return tf.where(uniform >= self._dropout, position, 0)

    def __call__(
        self, position: tf.Tensor, device: tf.Tensor, surface: tf.Tensor
    ) -> tf.Tensor:
        """Returns the logits float32 [N] of three int64 [N], 0 if not known."""
        position = tf.clip_by_value(position, 0, LAST_POSITION)
        cell = tf.stack([position, device, surface], axis=1)
        return tf.gather_nd(self.logits, cell)
