/* jobs/spec_sample.c: what `unicon-sample` can be asked for, and the keys that all programs share. The order is that of
 * --help. A key that changes what is made belongs in the first table, so that the same spec makes the same picture. */
#include "jobs/spec.h"

#define LEN(a) ((int)(sizeof(a) / sizeof *(a)))

static const struct spec_key sample_keys[] = {
    { .group = "Model", .name = "base", .type = SPEC_PATH, .value = "PATH",
      .help = "base model: a diffusers directory or a single-file checkpoint" },
    { .name = "variant", .type = SPEC_STRING, .value = "NAME",
      .help = "take the files of this variant where a directory has them, as fp16" },
    { .name = "vae", .type = SPEC_PATH, .value = "PATH", .help = "another autoencoder for the base" },
    { .name = "tokenizer", .type = SPEC_PATH, .value = "DIR",
      .help = "vocab.json and merges.txt, for a base that comes without" },
    { .name = "lora", .type = SPEC_LIST, .value = "PATH[:W]",
      .help = "add a low-rank adapter with weight W (default 1); may be repeated" },
    { .name = "prediction", .type = SPEC_CHOICE, .standard = "auto", .choices = "auto epsilon v",
      .help = "what the base predicts; auto asks its files" },
    { .name = "clip-skip", .type = SPEC_INT, .value = "N", .standard = "0", .high = 11,
      .help = "leave out the last N layers of the text encoder" },
    { .name = "dtype", .type = SPEC_CHOICE, .standard = "auto", .choices = "auto f32 f16 bf16",
      .help = "how weights and activations are stored; auto takes what the device is fastest with" },

    { .group = "What to draw", .name = "prompt", .type = SPEC_STRING, .value = "TEXT", .standard = "",
      .help = "what the picture shows" },
    { .name = "negative", .type = SPEC_STRING, .value = "TEXT", .standard = "", .help = "what it does not show" },
    { .name = "x", .type = SPEC_PATH, .value = "IMAGE", .help = "picture to start from" },
    { .name = "x-mask", .type = SPEC_PATH, .value = "IMAGE", .help = "white is drawn anew, black is kept" },
    { .name = "x-noise", .type = SPEC_DOUBLE, .value = "A", .standard = "1", .high = 1,
      .always = true,
      .help = "how much noise x starts with: 0 is the picture as it is, 1 noise alone; "
              "with --unicon 0 for a picture without a mask" },
    { .name = "x-sample", .type = SPEC_CHOICE, .standard = "sample", .choices = "sample mode",
      .help = "the picture's latents: drawn from the autoencoder's posterior, or its mode" },
    { .name = "exif", .type = SPEC_CHOICE, .standard = "on", .choices = "on off",
      .help = "turn pictures as their EXIF orientation says" },
    { .name = "width", .type = SPEC_INT, .value = "N", .standard = "0", .low = 8, .high = 8192,
      .help = "pixels across; 0 is the model's own size" },
    { .name = "height", .type = SPEC_INT, .value = "N", .standard = "0", .low = 8, .high = 8192,
      .help = "pixels down; 0 is the model's own size" },
    { .name = "count", .type = SPEC_INT, .value = "N", .standard = "1", .low = 1, .high = 100000,
      .help = "pictures to make" },
    { .name = "batch", .type = SPEC_INT, .value = "N", .standard = "1", .high = 1024,
      .help = "pictures at a time; 0 is as many as fit in memory" },

    { .group = "Pairs", .name = "unicon", .type = SPEC_LIST, .value = "[NAME=]PATH",
      .help = "UniCon checkpoint: x gets a partner y; may be repeated for y2, y3, .." },
    { .name = "y", .type = SPEC_LIST, .value = "[NAME=]IMAGE",
      .help = "the condition; NAME is a checkpoint's or a ControlNet's" },
    { .name = "y-mask", .type = SPEC_LIST, .value = "[NAME=]IMAGE", .help = "white is drawn anew, black is kept" },
    { .name = "y-noise", .type = SPEC_LIST, .value = "[NAME=]A",
      .help = "how much noise y starts with; 0 for a picture without a mask, else 1" },
    { .name = "y-prompt", .type = SPEC_STRING, .value = "TEXT", .standard = "",
      .help = "what y shows, if not what x does; the checkpoint's trigger word comes before it" },
    { .name = "task", .type = SPEC_CHOICE, .choices = "y2x x2y joint coarse-y coarse-x noisy-x2y",
      .help = "a schedule by name" },
    { .name = "schedule", .type = SPEC_STRING, .value = "TEXT",
      .help = "noise levels from when to when, as 'x=1:0 y=0'" },
    { .name = "pair", .type = SPEC_LIST, .value = "[NAME=]WX,WY",
      .help = "weights of what x and y get from each other; 1,1 otherwise" },
    { .name = "joint-scale", .type = SPEC_DOUBLE, .value = "S", .standard = "1", .high = 10,
      .help = "weight of joint attention" },
    { .name = "cond-guidance", .type = SPEC_LIST, .value = "[NAME=]C",
      .help = "guidance away from what comes without joint attention, or without that of one checkpoint" },
    { .name = "compat", .type = SPEC_CHOICE, .standard = "none", .choices = "none official",
      .help = "official: schedules, masks and random numbers of the published code" },

    { .group = "ControlNets", .name = "controlnet", .type = SPEC_LIST, .value = "[NAME=]PATH[:W]",
      .help = "x follows the picture --y NAME=IMAGE, with weight W (default 1); may be repeated" },
    { .name = "control-range", .type = SPEC_STRING, .value = "A,B", .standard = "0,1",
      .help = "between which fractions of x's steps they act" },

    { .group = "How to draw it", .name = "steps", .type = SPEC_INT, .value = "N", .standard = "50", .low = 1,
      .high = 1000, .help = "sampling steps from noise to picture" },
    { .name = "sampler", .type = SPEC_CHOICE, .standard = "ddim", .choices = "ddim ddpm euler euler-a dpm++2m pndm",
      .help = "how a step is taken" },
    { .name = "eta", .type = SPEC_DOUBLE, .value = "E", .standard = "0", .high = 1,
      .help = "noise of ddim's steps: 0 none, 1 as much as ddpm" },
    { .name = "cfg", .type = SPEC_DOUBLE, .value = "S", .standard = "7.5", .high = 100,
      .help = "classifier-free guidance scale; 1 is none" },

    { .group = "Randomness", .name = "seed", .type = SPEC_UINT64, .value = "N", .standard = "0",
      .help = "the same seed draws the same picture" },
    { .name = "rng", .type = SPEC_CHOICE, .standard = "philox",
      .choices = "philox torch-cpu torch-cpu:f16 torch-cpu:bf16 torch-cuda",
      .help = "random numbers: our own, or those of a diffusers run" },
    { .name = "noise", .type = SPEC_PATH, .value = "FILE",
      .help = "initial noise from a safetensors file instead (float32, NCHW, named x)" },
    { .name = "noise-row", .type = SPEC_INT, .value = "N", .high = 99999,
      .help = "row of that file for a single picture, from 0; otherwise one for each" },

    { .group = "Sweeps", .name = "sweep", .type = SPEC_STRING, .value = "TEXT",
      .help = "options that go from corner to corner, a picture at each point on the way, as "
              "'x-noise,y-noise=1,0:1,1:0,1'" },
    { .name = "sweep-steps", .type = SPEC_INT, .value = "N", .standard = "9", .low = 2, .high = 1000,
      .help = "points in all, the first and the last included" },

    { .group = "Output", .name = "out", .type = SPEC_PATH, .value = "PATH", .standard = "out.png", .letter = 'o',
      .help = "file to write: .png, .jpg or .tif; numbered where there are several" },
    { .name = "save-latents", .type = SPEC_PATH, .value = "FILE",
      .help = "also write the latents (safetensors, float32, NCHW, named x)" },
    { .name = "sheet", .type = SPEC_PATH, .value = "FILE",
      .help = "also write one picture of everything, what was given and what was made, with labels" },
};

const struct spec_kind spec_sample = { "sample", 1, sample_keys, LEN(sample_keys) };

static const struct spec_key shared_keys[] = {
    { .group = "Running", .name = "device", .type = SPEC_STRING, .value = "NAME", .standard = "auto",
      .help = "auto, cpu or cuda[:N]" },
    { .name = "threads", .type = SPEC_INT, .value = "N", .standard = "0", .high = 1024,
      .help = "processor threads; 0 is all" },
    { .name = "memory", .type = SPEC_SIZE, .value = "BYTES", .standard = "0",
      .help = "most memory to use, with K, M, G or T; 0 is what the device has free" },
    { .name = "plan", .type = SPEC_FLAG, .help = "say what memory and work it would take, and stop" },
    { .name = "show-schedule", .type = SPEC_FLAG, .help = "say at which step each input stands in each row, and stop" },
    { .name = "dry-run", .type = SPEC_FLAG, .help = "check everything, make nothing" },
    { .name = "replay", .type = SPEC_PATH, .value = "FILE",
      .help = "begin with the options that made this picture, or with a spec in JSON" },

    { .group = "Messages and files", .name = "json", .type = SPEC_FLAG, .help = "results as JSON on standard output" },
    { .name = "quiet", .type = SPEC_FLAG, .letter = 'q', .help = "no progress on standard error" },
    { .name = "verbose", .type = SPEC_FLAG, .letter = 'v', .help = "more about it on standard error" },
    { .name = "quality", .type = SPEC_INT, .value = "N", .standard = "95", .low = 1, .high = 100,
      .help = "JPEG quality" },
};

const struct spec_kind spec_shared = { "shared", 1, shared_keys, LEN(shared_keys) };
