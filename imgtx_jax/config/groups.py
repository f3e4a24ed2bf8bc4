"""Groups of configuration keys with their defaults: data, networks, optimizers, adversaries, stages
and sampling. config.py puts them together."""

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


def data():
  """Where images come from, and how they are cropped."""
  c = ml_collections.ConfigDict()
  # Or "folder" (path/train, path/val), "tfds:NAME", or "images": those in the folders of path,
  # separated by commas, without classes.
  c.source = "emoji"
  c.path = ""
  c.image_size = 32
  c.crop = "center"  # or "random": random-resized-crop of min_scale to max_scale of the area
  c.min_scale = 0.35
  c.max_scale = 1.0
  c.flip = False
  c.threads = 4
  return c


def quantizer():
  """Options of the codebook."""
  c = ml_collections.ConfigDict()
  c.kind = "vq"  # or "fsq"
  c.codebook_size = 512
  c.code_dim = 8
  c.levels = (8, 8, 8)  # fsq: the codebook has their product of codes
  c.commitment = 0.25
  c.entropy = 0.0
  c.revive_below = 0.05
  return c


def gpt():
  """The GPT: a Transformer, the order of its codes, and its dropouts."""
  c = trunk(192, 6, 6)
  c.order = "raster"  # or "spread"
  c.target_position = False
  c.token_dropout = 0.1
  c.residual_dropout = 0.1
  c.ffn_dropout = 0.1
  c.drop_path = 0.0  # of the deepest layer; the others in proportion to their depth
  c.class_dropout = 0.1
  return c


def tokenizer():
  """Options of the tokenizer stage."""
  c = ml_collections.ConfigDict()
  c.steps = 1000
  c.batch_size = 64
  c.optimizer = optimizer(1e-3, schedule="cosine")
  c.ema_decay = 0.999
  c.l1_weight = 0.0
  c.l2_weight = 1.0
  c.gradient_weight = 0.0  # of the differences between neighbouring pixels
  c.tap_weight = 0.25  # of the conditioned images' reconstruction
  c.lpips_weight = 0.0  # needs the extra "perceptual"
  c.perturb = 0.0  # share of codes replaced by neighbours, annealed to 0
  # Share of images decoded from latents, without quantisation: what the style stage starts from.
  c.continuous_share = 0.0
  c.adversarial_weight = 0.0
  c.adversarial_start_steps = 0
  # VQGAN: the weight times the ratio of the losses' gradients at the decoder's last layer.
  c.adversarial_adaptive = False
  c.adversary = adversary(2e-4, class_weight=0.0)
  return c


def pretrain():
  """Options of the pretrain stage."""
  c = ml_collections.ConfigDict()
  c.steps = 1000
  c.batch_size = 64
  c.accumulate = 1  # parts of a batch, one after the other: saves training's memory only
  c.optimizer = optimizer(1e-3, schedule="cosine")
  c.ema_decay = 0.999
  # RAR (arXiv:2411.00776): every example in a random order for so many steps, then a share of them
  # that falls to none over the anneal steps; the rest in gpt.order. 0 and 0: never.
  c.permute_steps = 0
  c.permute_anneal_steps = 0
  c.code_cache = ""  # a folder, or "auto" (WORKDIR/codes): encode once, not in each step
  c.cache_crops = "ten"  # or "center"; mirrored ones only with data.flip
  c.cache_scales = (1.1, 1.05)  # of the image's square, over the crops
  return c


def finetune():
  """Options of the finetune stage."""
  c = ml_collections.ConfigDict()
  c.steps = 1000
  c.batch_size = 32
  # What the generator attends to, for ablations: the GPT's "states"; the "class" token's alone;
  # "none"; or the states of an "untrained" GPT of the same kind beside the one that draws the codes
  # (the generator's optimizer trains it).
  c.memory = "states"
  c.from_decoder = True  # the generator's start: the tokenizer's decoder, or afresh
  c.noise_dim = 64
  # Of so many noises an example gets the one whose image comes nearest to its own (IMLE,
  # arXiv:1809.09087): reconstruction of what is not known then teaches variety, not the mean image.
  c.noise_candidates = 1
  c.modulation_dim = 128
  # The dial k: shares of the batch with no code and with all codes known; k is N·u² in between.
  c.prefix_none_share = 0.3
  c.prefix_full_share = 0.3
  c.null_label_share = 0.1
  c.reconstruction_weight = 10.0
  c.reconstruction_power = 1.0
  c.gradient_weight = 0.0  # within the reconstruction, beside the squared error's 1
  c.lpips_weight = 0.0
  c.tap_weight = 0.25
  c.adversarial_weight = 0.03
  c.reconstruct_warmup_steps = 0  # without the adversarial and the class loss
  # So many steps the reconstruction also counts, less and less, where no code is known.
  c.reconstruct_all_steps = 0
  c.class_weight = 0.02  # that the class layer knows what it was asked for
  c.next_code_weight = 0.1
  # What the image's losses train of the GPT, which the next-code loss trains as a whole: "all",
  # "last:L" (its last L layers), "adapter" (a residual on its states, in its stead) or "none".
  c.gpt_trained = "all"
  c.bank_share = 0.25  # of the batch rendered from codes that the GPT sampled
  c.bank_rows = 8  # per class
  c.refresh_steps = 200  # between refills of the bank
  c.optimizer = optimizer(2e-4, beta1=0.0, beta2=0.99, weight_decay=0.0)
  c.gpt_optimizer = optimizer(2e-5)
  c.adversary = adversary(2e-4)
  c.ema_decay = 0.995
  return c


def gan():
  """Options of the gan stage: the generator from noise and class alone, no tokenizer, no GPT. Its
  grid of mask tokens is of config.patch and as deep as a code."""
  c = ml_collections.ConfigDict()
  c.steps = 1000
  c.batch_size = 64
  c.noise_dim = 64
  c.modulation_dim = 128
  c.null_label_share = 0.1
  c.class_weight = 0.02
  c.optimizer = optimizer(2e-4, beta1=0.0, beta2=0.99, weight_decay=0.0)
  c.adversary = adversary(2e-4, class_weight=0.02)
  c.ema_decay = 0.999
  return c


def sample():
  """How samples are drawn while training, and by default afterwards."""
  c = ml_collections.ConfigDict()
  c.cfg_scale = 1.5
  c.guidance = "constant"  # over the codes: see autoregressive.Decoding
  c.cfg_start = 0.0
  c.cfg_stop = 1.0
  c.cfg_power = 2.75
  c.temperature = 1.0
  c.top_k = 0
  c.top_p = 1.0
  c.truncation = 1.0  # of the noise, and w_scale: see options.Sampling
  c.w_scale = 1.0
  c.refine_steps = 0  # of the condition vectors, uphill on the discriminator: refine.py
  c.refine_rate = 0.05
  c.refine_radius = 0.2
  return c


def style():
  """Options of the style stage; weights are for VGG layers of unit mean, images in [-1, 1]."""
  values = dict(
    steps=1000,
    batch_size=8,
    tokens=64,  # of a style
    channels=96,  # of the head's features at the grid; half as many each time it doubles its size
    modulation_dim=128,
    # Of styles, beside config.data, the contents: any source. Folders named twice count twice.
    data=dict(source="images", path="", crop="random", min_scale=0.35, max_scale=1.0),
    jitter_share=0.5,  # of style images whose colours, and whose detail, are changed at random
    partial_share=0.25,  # of the batch with a strength in [0, 1], whose target lies in between
    content_weight=1.0,
    style_weight=1.0,
    identity_weight=5.0,  # reconstruction of an image in its own style: a quarter more time
    identity_feature_weight=0.0,  # the same in VGG's features: a third more time
    gradient_weight=1.0,  # within the reconstruction, beside the squared error's 1
    total_variation_weight=0.0,
    shift=8,  # pixels by which VGG16's crops move at random, and which they lack of the images
    adversarial_weight=0.0,  # against a discriminator of style images
    adversarial_start_steps=0,
    adversary=adversary(2e-4, class_weight=0.0),
    collapse_variety=0.05,  # of the outputs, relative to the contents; see adversary
    optimizer=optimizer(5e-4, schedule="cosine", weight_decay=0.0),
    ema_decay=0.995,
  )
  return ml_collections.ConfigDict(values)
