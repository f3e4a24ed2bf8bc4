"""The rate of tf.data on JPEG files, as a process of its own for input_pipeline.py.

python -m imgtx_jax.benchmark.tf_data FOLDER SIZE MIN_SCALE MAX_SCALE IMAGES prints images a second
of reading the files, decode_and_crop_jpeg of a random square of MIN_SCALE to MAX_SCALE of the area
of the largest, and tf.image.resize to SIZE with antialiasing, in batches of 64: the median of three
rounds. The only module that imports TensorFlow.
"""

import glob
import statistics
import sys
import time

import tensorflow as tf


def main(folder, size, min_scale, max_scale, images):
  """Prints the rate."""

  def load(path):
    data = tf.io.read_file(path)
    shape = tf.image.extract_jpeg_shape(data)
    short = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
    side = tf.cast(short * tf.sqrt(tf.random.uniform([], min_scale, max_scale)), tf.int32)
    top = tf.random.uniform([], 0, shape[0] - side + 1, tf.int32)
    left = tf.random.uniform([], 0, shape[1] - side + 1, tf.int32)
    image = tf.image.decode_and_crop_jpeg(data, tf.stack([top, left, side, side]), channels=3)
    image = tf.image.resize(image, (size, size), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

  paths = sorted(glob.glob(f"{folder}/*.jpg"))
  data = tf.data.Dataset.from_tensor_slices(paths).repeat().map(load, tf.data.AUTOTUNE)
  batches = iter(data.batch(64).prefetch(tf.data.AUTOTUNE))
  steps, rates = max(1, images // 64), []
  for _ in range(4):
    next(batches)
  for _ in range(3):
    began = time.monotonic()
    for _ in range(steps):
      next(batches)
    rates.append(64 * steps / (time.monotonic() - began))
  print(statistics.median(rates))


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]), *map(float, sys.argv[3:5]), int(sys.argv[5]))
