"""What the engine does with components in a run: the last part of the reference, beside what classes say."""

IN_A_RUN = """
## In a run

What a component can rely on, whatever its kind.

### Components

A component never changes once it is made, and keeps nothing between calls: it is made anew of its options
wherever it is needed, several times in a run and in other processes. What has to last has places of its
own:

- a term or a callback: `memory`, tensors by name, detached from the gradient, for each image batch;
- a population: the `OpenPopulation` that it opens, whose `state` is kept;
- an initializer: what `prepare` returns;
- an optimizer: the `state_dict` of the torch optimizer that it builds.

All of these but the third are written to checkpoints, from which an image batch goes on after an
interruption.

A name that ends in `/*` is a family: `timm/*` is every `timm/NAME`, and the option `variant`, a text, is
the part that its user typed for the star. A component that is called exactly so comes first.

Other processes, of `ray` for example, are sent tables of options and no components: there, the same entry
points are loaded again. The package has to be installed where work runs, its classes have to stand at a
module's top level, and what a module remembers in variables is not shared.

### Errors

`GvbsmError(line)` is for what the user can put right: what is wrong, where, and what to do. The line is
printed as it is, and the exit code is 2. Anything else that a component raises, and whatever it returns of
another type, shape or dtype than the contract asks, ends the run with one line, too: it names the
component, its distribution, what it did and what is asked. The traceback goes into the run's `log.jsonl`,
or a file that the line names. A loss or a gradient that is not finite ends the run with the step, the
networks and the terms in question; the last good images are kept. Where memory runs out, image batches that
shared a forward pass are tried again in halves. Finished work stays, and the same command goes on from it.
A listener that raises is muted, and the run goes on.

### Networks

A backbone's `build` is called while planning, on the CPU and with nothing learnt, so that matchers can say
their `sites`; to train it; and wherever it is needed after that, without `weights`, to be given the
`state_dict` that was kept. So everything that is learnt has to be in the `state_dict`, and sites must not
depend on it.

What steps look through, and `source.committee`, is frozen: no parameter asks for a gradient, modules are in
evaluation mode, and a BatchNorm2d with running statistics is one multiplication and one addition. It stays
an instance of BatchNorm2d, though not of that class itself, under its name, with its parameters and running
statistics. On a CPU, memory is channels last, unless there is a GroupNorm. A population's `change` is
called before all this. What is measured is measured on networks in this state, and labels are made by them;
with `relabel.batch_norm = "batch"` BatchNorm alone goes by the batch then. An accuracy is that of the real
test split, whole.

### Image batches

The set is optimised in image batches, which are units of work of their own:

- `synthesis.batching = "by_class"`: all images of as many classes as fit into `synthesis.batch`; a class
  that does not fit is split;
- `"one_class"`: all images of one class;
- `"across_classes"`: one image of each of as many classes as fit, then the second of each, and so on;
- where a term or the population says `separable = False`, the whole set is one image batch, class after
  class.

`Initializer.images` is called once for each image batch, with its labels and ranks; again if that is taken
up after an interruption. `prepare` is called once for a data set, seed and backbones, in a unit of its own.
Each image batch comes out as if it were optimised alone. Several may share a forward pass, though, on a GPU
or with `synthesis.batches_per_step`, if the population is `joint`, there is no callback, and no term holds
a matcher: a term is then called once for each of them, and sees its own images, labels and memory.

Images are normalised floats on the run's device up to the end of a unit, where they are clamped to black
and white and rounded to 8 bits. The rounded images are labelled, and seen by students.

### A step

1. The population draws the networks; the parameterization decodes the images.
2. For each image batch, the augmentation draws the views (`progress` is `index / steps`), then a number is
   drawn for each site of each network, which decides with `drop_rate` whether a matcher skips it. So
   nothing random depends on who asks for what.
3. The losses are asked for: terms, then matchers, then regularizers, each in the recipe's order, times
   `weight`. What they ask of the step is computed when the first one does, and kept: the views' pixels;
   for each network one forward pass for the logits and all matchers, and another one for each choice of
   sites that `inputs` and `features` ask for. A network may be called on anything else, such as views of
   other images; that is a pass more.
4. The optimizer takes a step at `learning_rate` times the schedule's factor; the parameterization projects;
   the population settles; every callback whose `every` divides the steps taken is called. Callbacks are
   called once before the first step, too, with 0.

Where a callback says that only some images are active, a step is of these alone; labels, views and all else
are, too, and the others do not change. A matcher's `statistics` is called with the activations of one image
batch, or of one of its classes; sites that are skipped may be left out. It may be traced and compiled: what
it does must not depend on the values of tensors.

### Training

Backbones and students are trained alike. They are built, in evaluation mode, and the optimizer of their
parameters. In every epoch: `train()`; for each batch the rate is set to `learning_rate` times `factor(step,
steps)`, counted over all epochs, then forward, loss, backward, the optimizer's step, and the running mean
of the weights if there is one; then `eval()`, in which tests are done, every `evaluation.test_every` epochs
and after the last one. Soft labels come with their stored views; hard ones with views drawn by
`evaluation.augmentation` (for backbones `pretrain.augmentation`), whose `progress` is the share of the
epochs that is done.

### Random numbers

All come from streams with a seed each, made of what they are for and of the recipe's `seed`, or a student's:

| stream | of |
| --- | --- |
| an image batch: first images, then step by step views and dropped sites | seed, number of the batch |
| a population | seed; if it is not `joint`, the batch's number, too |
| the callbacks of an image batch | seed, number of the batch |
| a backbone: its parameters, then order and views | seed, name, which of several alike it is |
| measuring: order and views | seed |
| labels: order, views and CutMix | seed, set, epoch or block |
| a student: its parameters; order and views | the student's seed alone |

A `generator` is such a stream, on the CPU: draw there, then move to the device. torch's global generator is
seeded for each unit and put back after it; only `Backbone.build` and the layers of its modules, such as
dropout, may use it.

### Keys

Each piece of work keeps its result under a key, the digest of all that it depends on: the options of every
component and section of the recipe that take part; of each component its distribution, version and the
contents of its `files()`; the data's digest, the seed, and the keys of what it reads. Results with the same
key are not made again.

| unit | depends on |
| --- | --- |
| a backbone | its options but `match_weight`, `[pretrain]` |
| measured statistics | `[measure]`, `Matcher.measured_by()` of those that are measured, the backbone |
| what an initializer prepares | its options, the backbones unless `uses_networks` is False |
| an image batch | `[synthesis]`, its labels and ranks, backbones, measured and prepared statistics |
| labels | `[relabel]`, the images, the teachers |
| a student | `[evaluation]`, its options and seed, the images, the labels |

Keys of the recipe that change no result, such as `synthesis.log_every`, are in none. Neither is code: while
you change some, raise its package's version, or give a new `--out` and `--store`.
""".strip()
