"""Groups of configuration keys with their defaults: a Transformer, an optimizer, an adversary, the
convolutional tokenizer, the style stage. config.py puts them together."""

import ml_collections


def trunk(width, layers, heads, **overrides):
  """Hyperparameters of one Transformer. hidden 0 means 8/3 of the width."""
  values = dict(
    width=width,
    layers=layers,
    heads=heads,
    hidden=0,
    qk_norm=False,
    layer_scale=0.0,
    attention="dot",  # or "l2", by distance
    window=0,  # of self-attention, in tokens (even; encoders and generator): see models/windows.py
    spectral_norm=False,  # holds matrices at their first spectral norm
    implementation="xla",
    remat="none",
    unroll=1,  # layers in one turn of the scan: more run faster and take longer to compile
  )
  return ml_collections.ConfigDict(values | overrides)


def optimizer(learning_rate, **overrides):
  """Options of optim.make."""
  values = dict(
    learning_rate=learning_rate,
    schedule="constant",
    warmup_steps=100,
    final_share=0.0,
    inverse_rate=1e-5,
    width_base=0,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.05,
    clip_norm=1.0,
    freeze="",
  )
  return ml_collections.ConfigDict(values | overrides)


def adversary(learning_rate, **overrides):
  """Options of a player against a discriminator, shared by the stages that have one."""
  values = dict(
    loss="relativistic",
    class_weight=1.0,  # of its class layer's loss on real images; the generator has its own
    updates=1,  # of the discriminator for one of the generator, on the same images
    # R1 and R2: "exact", or "difference" (finite differences over a share of the batch).
    penalty="difference",
    penalty_weight=0.1,
    # It goes to penalty_weight_end by half a cosine over a share of the steps; 0: it stays.
    penalty_weight_end=0.0,
    penalty_anneal_share=0.0,
    penalty_every=1,  # the discriminator's steps from one penalty to the next; they weigh as much
    penalty_sigma=0.01,
    penalty_share=0.25,
    augment=("color", "translation"),
    consistency_weight=0.0,  # balanced consistency: of logits with and without augmentation
    # Whether it sees the conditioned images beside the image, and the noise on the first of them.
    levels=False,
    level_sigma=0.5,
    # What config.guard takes for a collapse; 0 is no limit. The discriminator's margin
    # D(x) − D(G), with next to no loss; the generated images' deviation from each other, relative
    # to the real ones'.
    collapse_margin=20.0,
    collapse_variety=0.01,
    optimizer=optimizer(learning_rate, beta1=0.0, beta2=0.99, weight_decay=0.0),
  )
  return values | overrides


def vqgan():
  """Hyperparameters of the convolutional tokenizer; the defaults are LlamaGen's VQ-16."""
  return ml_collections.ConfigDict(
    dict(
      channels=128,
      multipliers=(1, 1, 2, 2, 4),  # of channels, a level; the image halves between two levels
      z_channels=256,
      encoder_blocks=2,
      decoder_blocks=3,
    )
  )


def style():
  """Options of the style stage; weights are for VGG layers of unit mean, images in [-1, 1]."""
  values = dict(
    steps=1000,
    batch_size=8,
    tokens=64,  # of a style
    modulation_dim=128,
    # Of styles, beside config.data, the contents: any source. Folders named twice count twice.
    data=dict(source="images", path="", crop="random", min_scale=0.35),
    jitter_share=0.5,  # of style images whose colours are changed at random
    partial_share=0.25,  # of the batch with a strength in [0, 1], whose target lies in between
    content_weight=1.0,
    style_weight=1.0,
    null_weight=40.0,  # reconstruction of the content under the null style
    identity_weight=20.0,  # reconstruction of an image in its own style
    identity_feature_weight=0.0,  # the same in VGG's features: a third more time
    gradient_weight=1.0,  # within both reconstructions, beside the squared error's 1
    total_variation_weight=0.0,
    adversarial_weight=0.0,  # against a discriminator of style images
    adversarial_start_steps=0,
    adversary=adversary(2e-4, class_weight=0.0),
    collapse_variety=0.05,  # of the outputs, relative to the contents; see adversary
    optimizer=optimizer(5e-4, schedule="cosine", weight_decay=0.0),
    ema_decay=0.995,
  )
  return ml_collections.ConfigDict(values)
