"""Beam jobs: from raw logs to TFRecord examples."""

import os

# TensorFlow reads this once, when it is first imported; TensorFlow
# Recommenders needs Keras 2 in the same process (models/keras_setup.py).
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
