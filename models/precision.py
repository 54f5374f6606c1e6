"""Dense layers in 16 bits in training: `precision` of a model's section.

Weights, optimiser states, heads, losses and everything outside the layers stay
float32, and so does whatever is not training: a validation measures what is
served. Half the bytes and, on accelerators, several times the products a
second; bfloat16 has float32's range and 8 bits of precision, float16 has 11
bits and ends at 65,504, so its gradients need `models.loss_scale`.
"""

from models.keras_setup import keras, tf
from schemas.model_config import Precision

_IN_TRAINING = {
    "float32": tf.float32,
    "mixed_bfloat16": tf.bfloat16,
    "mixed_float16": tf.float16,
}


def compute_dtype(precision: Precision, training: bool) -> tf.DType:
    """What the dense layers compute in."""
    return _IN_TRAINING[precision] if training else tf.float32


def dense(
    layer: keras.layers.Dense, inputs: tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
    """Applies a layer of float32 weights in a dtype.

    Keras' own policies would wrap the variables, which the optimisers take
    by their handles.

    Args:
      layer: built, with a bias.
      inputs: [..., input_dim], of any float type.
      dtype: of the product, the activation and the output.
    """
    if dtype == tf.float32:
        return layer(inputs)
    outputs = tf.matmul(tf.cast(inputs, dtype), tf.cast(layer.kernel, dtype))
    return layer.activation(outputs + tf.cast(layer.bias, dtype))
