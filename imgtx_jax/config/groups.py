"""Groups of config keys with their defaults: data, networks, optimizer, adversary, stages and
sampling. defaults.py puts them together.

A stage's `optimizer` holds what differs there from config.optimizer, and tokenizer.adversary what
differs there from config.adversary: option_fields.read lays one block over the other.
"""

import dataclasses

import ml_collections

from imgtx_jax.losses.adversarial import AdversarialOptions
from imgtx_jax.sampling.options import SamplingOptions


def block(cls, **changes):
  """Returns a ConfigDict with a key per field of a dataclass: its default, or that in changes."""
  return ml_collections.ConfigDict(dataclasses.asdict(cls(**changes)))


def network(width, depth, num_heads, **own):
  """Returns the size of one Transformer and its other keys (own).

  A key of the name of a field of models/transformer.BlockConfig sets that field.
  """
  c = ml_collections.ConfigDict()
  c.width = width  # of a token; a multiple of 4 · num_heads
  c.depth = depth  # layers
  c.num_heads = num_heads  # of attention
  c.mlp_dim = 0  # width of the feed-forward layer; 0: 8/3 of width, rounded up to a multiple of 32
  c.update(own)
  return c


def parallel():
  """Returns the keys of how a step runs on many devices."""
  c = ml_collections.ConfigDict()
  c.mode = "pmap"  # or "jit", over a mesh data × fsdp
  c.fsdp = 1  # devices that share one copy of the state
  # Which axis of which arrays fsdp splits, where their size should not decide: "REGEX=AXIS" or
  # "REGEX=none", searched in paths such as params/gpt/transformer/layers/block/mlp/w13/kernel
  # (whose axis 0 are the layers); the first match counts.
  c.rules = ()
  return c


def generator():
  """Returns the size and the other keys of the generator."""
  return network(
    128,
    4,
    4,
    qk_norm=False,  # whether queries and keys are normalised
    taps=(2,),  # layers after which it renders a conditioned image
    head_channels=16,  # of the convolutions over the rendered patches
    head_overlap=False,  # whether a token draws beyond its patch, fading out
    noise_dim=64,  # numbers of the noise that it is given in finetune and gan
    modulation_dim=128,  # of what modulates its layers: noise and class, or the style
  )


def gpt():
  """Returns the size and the other keys of the GPT."""
  return network(
    192,
    6,
    6,
    order="raster",  # of codes; or "spread", from coarse to fine
    dropout=0.1,  # of the tokens and of the two branches of a layer
    drop_path=0.0,  # of the deepest layer; the others in proportion to their depth
  )


def discriminator():
  """Returns the size and the other keys of the discriminator."""
  return network(
    128,
    4,
    4,
    patch=4,  # pixels a side of a token
    overlap=2,  # pixels by which patches reach into their neighbours, each way
    qk_norm=True,
    layer_scale=0.1,  # first value of the branches' learned scales; 0: none
    attention="dot",  # or "l2", by distance (ViTGAN, arXiv:2107.04589)
    spectral_norm=False,  # whether matrices keep their first spectral norm
  )


def data():
  """Returns the keys of a source of images and of cropping."""
  c = ml_collections.ConfigDict()
  # "emoji" (in the package); "folder": path/train/CLASS and path/val/CLASS; "tfds:NAME", prepared
  # in path; "images": all images in the folders of path, between commas, without classes.
  c.source = "emoji"
  c.path = ""
  c.image_size = 32  # pixels, of the square images
  c.crop = "center"  # or "random": a random square of min_scale to max_scale of the area
  c.min_scale = 0.35  # fraction of the area of the largest square
  c.max_scale = 1.0  # the same
  c.flip = False  # whether images are mirrored at random
  c.threads = 4  # that read and decode images, a process
  return c


def vqgan():
  """Returns the keys of the convolutional tokenizer; the defaults are LlamaGen's VQ-16."""
  c = ml_collections.ConfigDict()
  c.channels = 128  # at the image's size; a multiple of 32
  c.multipliers = (1, 1, 2, 2, 4)  # of channels, a level; the image halves between two levels
  c.z_channels = 256  # of the latents before they are projected to code_dim
  c.encoder_blocks = 2  # residual blocks a level
  c.decoder_blocks = 3  # the same
  return c


def quantizer():
  """Returns the keys of the codebook."""
  c = ml_collections.ConfigDict()
  c.codebook_size = 512  # codes
  c.code_dim = 8  # numbers a code
  c.commitment = 0.25  # weight of the encoder's pull towards its code
  c.entropy = 0.0  # weight of the entropy loss; 0: none
  return c


def optimizer():
  """Returns the keys of AdamW, for all networks.

  A stage's own block has learning_rate, schedule and warmup_steps, and may have any other key of
  this one.
  """
  c = ml_collections.ConfigDict()
  c.beta1 = 0.9
  c.beta2 = 0.95
  c.epsilon = 1e-8
  c.weight_decay = 0.05  # of matrices, times the learning rate
  c.clip_norm = 1.0  # the gradient's largest global norm; 0: no limit
  c.end_lr_ratio = 0.0  # of a cosine schedule: its last learning rate over its highest
  return c


def schedule(learning_rate, kind="constant", **own):
  """Returns the keys that a stage's optimizer sets over config.optimizer."""
  c = ml_collections.ConfigDict()
  c.learning_rate = learning_rate  # the highest
  c.schedule = kind  # after the warm-up: "constant", or "cosine" down to end_lr_ratio
  c.warmup_steps = 100  # from 0 up to learning_rate, linearly
  c.update(own)  # keys of config.optimizer
  return c


def adversary():
  """Returns the keys of the discriminator's training; see AdversarialOptions.

  The keys of its optimizer but learning_rate, schedule and warmup_steps also apply to the
  generators in finetune and gan.
  """
  c = block(AdversarialOptions)
  c.optimizer = schedule(2e-4, beta1=0.0, beta2=0.99, weight_decay=0.0)
  return c


def stage(steps, batch_size, ema_decay):
  """Returns the keys that every stage has."""
  c = ml_collections.ConfigDict()
  c.steps = steps  # of training
  c.batch_size = batch_size  # images a step, over all devices
  c.ema_decay = ema_decay  # of the moving average of the weights, which is what is used afterwards
  return c


def tokenizer():
  """Returns the keys of the stage tokenizer: images to codes and back."""
  c = stage(1000, 64, 0.999)
  c.optimizer = schedule(1e-3, "cosine")
  c.l1_weight = 0.0  # of the pixels' absolute error
  c.l2_weight = 1.0  # of their squared error
  c.gradient_weight = 0.0  # of the squared error of differences between neighbouring pixels
  c.lpips_weight = 0.0  # of LPIPS; needs the extra "perceptual"
  # Probability that an image is decoded from its latents, without quantisation: what the style
  # stage starts from.
  c.continuous_prob = 0.0
  c.adversarial_weight = 0.0  # 0: no discriminator
  c.adversarial_start_steps = 0  # steps without the adversarial loss
  # VQGAN (arXiv:2012.09841): the weight times the ratio of the losses' gradients at the last layer.
  c.adversarial_adaptive = False
  c.adversary = ml_collections.ConfigDict(dict(loss="relativistic"))  # over config.adversary
  return c


def pretrain():
  """Returns the keys of the stage pretrain: the GPT learns the codes."""
  c = stage(1000, 64, 0.999)
  c.optimizer = schedule(1e-3, "cosine")
  # RAR (arXiv:2411.00776): steps in which every example has a random order of codes, then steps
  # over which the fraction of such examples falls to none. 0 and 0: always gpt.order.
  c.permute_steps = 0
  c.permute_anneal_steps = 0
  # Probability that an image is shifted, scaled and changed in hue a little before it is encoded,
  # against overfitting a few thousand images; needs code_cache = "", for a cache holds fixed crops.
  c.augment_prob = 0.0
  c.grad_accum_steps = 1  # parts of a batch, one after the other: the same step in less memory
  c.code_cache = ""  # a folder, or "auto" (WORKDIR/codes): images are encoded once, not each step
  c.cache_crops = "ten"  # codes an image: of ten crops, or of the "center"; mirrored with data.flip
  c.cache_scales = (1.1, 1.05)  # side of the image that is cropped, over the crop's; one a crop set
  return c


def finetune():
  """Returns the keys of the stage finetune: the generator renders the GPT's condition vectors."""
  c = stage(1000, 32, 0.995)
  c.optimizer = schedule(2e-4, beta1=0.0)  # the generator's, over config.adversary.optimizer
  c.gpt_optimizer = schedule(2e-5)  # the GPT's, over config.optimizer
  c.freeze = ""  # a regex of the generator's parameters (PATH/NAME) that keep their values
  # What the generator attends to: the GPT's "states"; for ablations, the "class" token's alone,
  # "none", or the states of an "untrained" GPT that the generator's optimizer trains.
  c.memory = "states"
  c.init_from_decoder = True  # whether the generator starts from the tokenizer's decoder
  # What the image's losses train of the GPT (the next-code loss trains all of it): "all"; "last:L",
  # its last L layers; "adapter", a residual layer on its states instead; or "none".
  c.gpt_trained = "all"
  # The dial k, codes that the generator is shown: the probabilities of none and of all. Else it is
  # N·u², u uniform.
  c.prefix_none_prob = 0.3
  c.prefix_full_prob = 0.3
  # Noises an example is rendered with; only the one whose image comes nearest to its own is trained
  # (IMLE, arXiv:1809.09087). 1: a single random one.
  c.noise_candidates = 1
  # Layers of the network that guesses the codes beyond k from the numbers that decide the GPT's
  # samples (models/code_predictor.py); 0: none, and the generator is given mask tokens there.
  c.predictor_depth = 0
  c.reconstruction_weight = 10.0  # times k/N: of what the known codes determine
  c.gradient_weight = 0.0  # within the reconstruction, as in tokenizer
  c.lpips_weight = 0.0  # as in tokenizer
  c.reconstruct_all_steps = 0  # steps over which reconstruction without known codes fades out
  c.adversarial_weight = 0.03
  c.adversarial_start_steps = 0  # steps without the adversarial and the class loss
  c.class_weight = 0.02  # of the generator's loss that the class layer knows the class asked for
  c.next_code_weight = 0.1  # of the GPT's next-code loss, which keeps it a prior
  c.bank_prob = 0.25  # probability that an example is of codes that the GPT sampled, not an image's
  c.bank_rows = 8  # sampled codes kept, a class
  c.refresh_steps = 200  # from one sampling of them to the next
  return c


def gan():
  """Returns the keys of the stage gan: the generator from noise and class alone.

  Its grid has config.patch and quantizer.code_dim.
  """
  c = stage(1000, 64, 0.999)
  c.optimizer = schedule(2e-4)  # over config.adversary.optimizer
  c.class_weight = 0.02  # of the class loss, the generator's and the discriminator's
  return c


def style():
  """Returns the keys of the stage style.

  Its weights are for VGG16's layers divided by their mean activation and images in [-1, 1].
  """
  c = stage(1000, 8, 0.995)
  c.optimizer = schedule(5e-4, "cosine", weight_decay=0.0)
  # Style images; the content images are those of config.data, whose crop they share. A folder that
  # is named twice counts twice.
  c.data = ml_collections.ConfigDict(dict(source="images", path=""))
  c.head_channels = 96  # of the output head at the grid; half as many each time its size doubles
  c.jitter_prob = 0.5  # probability that a style image's colours, or its detail, are changed
  c.partial_prob = 0.25  # probability of a strength below 1, uniform, with a target in between
  c.content_weight = 1.0  # of VGG16's content loss
  c.style_weight = 1.0  # of VGG16's style loss
  c.identity_weight = 5.0  # of reconstructing an image in its own style; a quarter more time
  c.shift = 8  # pixels that VGG16's random crops lack of the images; 0: the whole images
  c.adversarial_weight = 0.0  # against a discriminator of style images; 0: none
  c.adversarial_start_steps = 0  # steps without the adversarial loss
  return c


def sample():
  """Returns the sampling options while training, and by default afterwards: see SamplingOptions."""
  return block(SamplingOptions, cfg_scale=1.5)
