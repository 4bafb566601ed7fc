/* Greedy captions by a bundle's own graphs through LiteRT's C API: what remains of a caption without Python.
 *
 * captions LIBRARY ENCODER DECODER PLAN PIXELS ENCODER_THREADS DECODER_THREADS
 *
 * PLAN says what the manifest says, a word and its numbers a line (see native_c.py, which writes it). PIXELS holds the
 * photographs one after another, uint8 of the encoder's own size. For every number read from standard input, so many
 * photographs are encoded, then decoded; the answer is a line "encode_ns decode_ns" and a line of tokens a photograph.
 *
 * The encoder's outputs are the decoder's inputs, the same memory where each is a tensor of its own. The likeliest token
 * is taken, and nothing else is computed of the logits. No header of LiteRT is in its Python package, so what is called
 * is declared here.
 */
#include <dlfcn.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST = 64, NAME = 128 };

/* A tensor's type as LiteRT 2 has it: element, rank and whether there are strides in a byte, dimensions, strides. */
typedef struct {
  int element;
  unsigned int rank : 7;
  bool has_strides : 1;
  int32_t dimensions[8];
  uint32_t strides[8];
} TensorType;

typedef struct Opaque *Handle; /* environment, model, signature, tensor, compiled model, buffer, options */

static struct {
  int (*environment)(int, const void *, Handle *);
  int (*model)(Handle, const char *, Handle *);
  int (*options)(Handle *);
  int (*accelerators)(Handle, int);
  int (*opaque)(const char *, void *, void (*)(void *), Handle *);
  int (*add_opaque)(Handle, Handle);
  int (*compile)(Handle, Handle, Handle, Handle *);
  int (*run)(Handle, size_t, size_t, Handle *, size_t, Handle *);
  int (*signature)(Handle, size_t, Handle *);
  int (*count_inputs)(Handle, size_t *);
  int (*count_outputs)(Handle, size_t *);
  int (*input_name)(Handle, size_t, const char **);
  int (*output_name)(Handle, size_t, const char **);
  int (*input_tensor)(Handle, size_t, Handle *);
  int (*output_tensor)(Handle, size_t, Handle *);
  int (*tensor_type)(Handle, TensorType *);
  int (*buffer)(const TensorType *, void *, size_t, void (*)(void *), Handle *);
} api;

typedef struct {
  char name[NAME];
  void *memory;
  size_t bytes;
  Handle handle, buffer;
  bool has_twin; /* the graph puts out one tensor under two names, or what it was given */
} Tensor;

typedef struct {
  Handle compiled;
  size_t inputs, outputs;
  Tensor input[MOST], output[MOST];
  Handle input_buffers[MOST], output_buffers[MOST];
} Graph;

/* A row of the state table. An appended row is `outer` blocks of `length` columns of `inner` bytes each. */
typedef struct {
  char name[NAME], kind[16];
  size_t outer, length, inner;
  Tensor *state, *update, *encoded;
} Row;

static struct {
  size_t image_bytes, vocabulary, steps, suppressed, rows, aliases;
  int start, end, suppressed_ids[MOST];
  Row row[MOST];
  char alias[MOST][2][NAME]; /* what the encoder puts out under a name that LiteRT forgets, and the other name */
} plan;

static void fail(const char *what, const char *which, int status) {
  fprintf(stderr, "%s %s (status %d)\n", what, which, status);
  exit(1);
}

static void check(int status, const char *what) {
  if (status != 0) fail("LiteRT refused:", what, status);
}

static void *symbol(void *library, const char *name) {
  void *found = dlsym(library, name);
  if (found == NULL) fail("the library has no", name, 0);
  return found;
}

static void bind_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) fail("cannot load", dlerror(), 0);
#define BIND(field, name) *(void **)&api.field = symbol(library, "LiteRt" name)
  BIND(environment, "CreateEnvironment");
  BIND(model, "CreateModelFromFile");
  BIND(options, "CreateOptions");
  BIND(accelerators, "SetOptionsHardwareAccelerators");
  BIND(opaque, "CreateOpaqueOptions");
  BIND(add_opaque, "AddOpaqueOptions");
  BIND(compile, "CreateCompiledModel");
  BIND(run, "RunCompiledModel");
  BIND(signature, "GetModelSignature");
  BIND(count_inputs, "GetNumSignatureInputs");
  BIND(count_outputs, "GetNumSignatureOutputs");
  BIND(input_name, "GetSignatureInputName");
  BIND(output_name, "GetSignatureOutputName");
  BIND(input_tensor, "GetSignatureInputTensorByIndex");
  BIND(output_tensor, "GetSignatureOutputTensorByIndex");
  BIND(tensor_type, "GetRankedTensorType");
  BIND(buffer, "CreateTensorBufferFromHostMemory");
#undef BIND
}

static void read_plan(const char *path) {
  FILE *file = fopen(path, "r");
  if (file == NULL) fail("cannot open", path, 0);
  char word[32];
  while (fscanf(file, "%31s", word) == 1) {
    int ok = 1;
    if (!strcmp(word, "image")) {
      ok = fscanf(file, "%zu", &plan.image_bytes);
    } else if (!strcmp(word, "vocabulary")) {
      ok = fscanf(file, "%zu", &plan.vocabulary);
    } else if (!strcmp(word, "steps")) {
      ok = fscanf(file, "%zu", &plan.steps);
    } else if (!strcmp(word, "start")) {
      ok = fscanf(file, "%d", &plan.start);
    } else if (!strcmp(word, "end")) {
      ok = fscanf(file, "%d", &plan.end);
    } else if (!strcmp(word, "suppress") && plan.suppressed < MOST) {
      ok = fscanf(file, "%d", &plan.suppressed_ids[plan.suppressed++]);
    } else if (!strcmp(word, "state") && plan.rows < MOST) {
      Row *row = &plan.row[plan.rows++];
      ok = fscanf(file, "%127s %15s %zu %zu %zu", row->name, row->kind, &row->outer, &row->length, &row->inner) == 5;
    } else if (!strcmp(word, "alias") && plan.aliases < MOST) {
      ok = fscanf(file, "%127s %127s", plan.alias[plan.aliases][0], plan.alias[plan.aliases][1]) == 2;
      plan.aliases++;
    } else {
      ok = 0;
    }
    if (ok != 1) fail("cannot read the plan at", word, 0);
  }
  fclose(file);
}

static size_t element_bytes(int element) {
  switch (element) {
    case 1: /* float32 */
    case 2: /* int32 */
      return 4;
    case 3: /* uint8 */
    case 9: /* int8 */
      return 1;
  }
  fail("a tensor has", "an element type that no bundle has", element);
  return 0;
}

/* Memory of its own for a tensor, or `shared` where another graph's has the same size. A free batch becomes 1. */
static void give_memory(Tensor *tensor, Tensor *shared) {
  TensorType type;
  memset(&type, 0, sizeof type);
  check(api.tensor_type(tensor->handle, &type), "GetRankedTensorType");
  tensor->bytes = element_bytes(type.element);
  for (unsigned i = 0; i < type.rank; i++) {
    if (type.dimensions[i] < 0) type.dimensions[i] = 1;
    tensor->bytes *= (size_t)type.dimensions[i];
  }
  size_t rounded = (tensor->bytes + 127) & ~(size_t)63; /* kernels may read a little beyond the end */
  if (shared != NULL && shared->bytes == tensor->bytes && !shared->has_twin) {
    tensor->memory = shared->memory;
  } else if ((tensor->memory = aligned_alloc(64, rounded)) == NULL) {
    fail("no memory for", tensor->name, 0);
  } else {
    memset(tensor->memory, 0, rounded);
  }
  check(api.buffer(&type, tensor->memory, tensor->bytes, NULL, &tensor->buffer), "CreateTensorBufferFromHostMemory");
}

static Tensor *named(Tensor *tensors, size_t count, const char *name) {
  for (size_t i = 0; i < count; i++) {
    if (!strcmp(tensors[i].name, name)) return &tensors[i];
  }
  return NULL;
}

static Tensor *same(Tensor *tensors, size_t count, Handle handle) {
  for (size_t i = 0; i < count; i++) {
    if (tensors[i].handle == handle) return &tensors[i];
  }
  return NULL;
}

static Tensor *required(Tensor *tensors, size_t count, const char *name) {
  Tensor *found = named(tensors, count, name);
  if (found == NULL) fail("the graph has no tensor", name, 0);
  return found;
}

/* Load a graph on so many threads; inputs that `before` puts out are bound to its memory. */
static void load(Graph *graph, Handle environment, const char *path, const char *threads, Graph *before) {
  Handle model, options, cpu, signature;
  const char *name;
  char *text = malloc(64);
  if (text == NULL) fail("no memory for", "options", 0);
  snprintf(text, 64, "num_threads = %d\n", atoi(threads));
  check(api.model(environment, path, &model), path);
  check(api.options(&options), "CreateOptions");
  check(api.accelerators(options, 1), "SetOptionsHardwareAccelerators"); /* 1: the CPU */
  check(api.opaque("xnnpack", text, free, &cpu), "CreateOpaqueOptions");
  check(api.add_opaque(options, cpu), "AddOpaqueOptions");
  check(api.compile(environment, model, options, &graph->compiled), "CreateCompiledModel");
  check(api.signature(model, 0, &signature), "GetModelSignature");
  check(api.count_inputs(signature, &graph->inputs), "GetNumSignatureInputs");
  check(api.count_outputs(signature, &graph->outputs), "GetNumSignatureOutputs");
  if (graph->inputs > MOST || graph->outputs > MOST) fail("more tensors than expected:", path, 0);
  for (size_t i = 0; i < graph->inputs; i++) {
    check(api.input_name(signature, i, &name), "GetSignatureInputName");
    snprintf(graph->input[i].name, NAME, "%s", name);
    check(api.input_tensor(signature, i, &graph->input[i].handle), "GetSignatureInputTensorByIndex");
    give_memory(&graph->input[i], before ? named(before->output, before->outputs, name) : NULL);
    graph->input_buffers[i] = graph->input[i].buffer;
  }
  for (size_t i = 0; i < graph->outputs; i++) {
    check(api.output_name(signature, i, &name), "GetSignatureOutputName");
    snprintf(graph->output[i].name, NAME, "%s", name);
    check(api.output_tensor(signature, i, &graph->output[i].handle), "GetSignatureOutputTensorByIndex");
    Tensor *twin = same(graph->input, graph->inputs, graph->output[i].handle);
    if (twin == NULL) twin = same(graph->output, i, graph->output[i].handle);
    if (twin != NULL) {
      graph->output[i].memory = twin->memory;
      graph->output[i].bytes = twin->bytes;
      graph->output[i].buffer = twin->buffer;
      graph->output[i].has_twin = twin->has_twin = true;
    } else {
      give_memory(&graph->output[i], NULL);
    }
    graph->output_buffers[i] = graph->output[i].buffer;
  }
}

static void run(Graph *graph) {
  int status = api.run(graph->compiled, 0, graph->inputs, graph->input_buffers, graph->outputs, graph->output_buffers);
  if (status != 0) fail("LiteRT refused:", "RunCompiledModel", status);
}

static int64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* The first of the greatest. Eight maxima side by side, because one alone waits for each comparison. */
static int likeliest(const float *logits, size_t count) {
  float most[8], greatest;
  size_t i = 0;
  for (int k = 0; k < 8; k++) most[k] = logits[0];
  for (; i + 8 <= count; i += 8) {
    for (int k = 0; k < 8; k++) most[k] = logits[i + k] > most[k] ? logits[i + k] : most[k];
  }
  greatest = most[0];
  for (int k = 1; k < 8; k++) greatest = most[k] > greatest ? most[k] : greatest;
  for (; i < count; i++) greatest = logits[i] > greatest ? logits[i] : greatest;
  for (i = 0; i + 1 < count && logits[i] != greatest; i++) continue;
  return (int)i;
}

/* Decode what the encoder left in the decoder's inputs; the number of tokens. */
static size_t decode(Graph *decoder, int *tokens) {
  int32_t *fed = required(decoder->input, decoder->inputs, "token")->memory;
  int32_t *position = required(decoder->input, decoder->inputs, "position")->memory;
  float *logits = required(decoder->output, decoder->outputs, "logits")->memory;
  for (size_t i = 0; i < plan.rows; i++) {
    Row *row = &plan.row[i];
    if (row->encoded == NULL) {
      memset(row->state->memory, 0, row->state->bytes);
    } else if (row->encoded->memory != row->state->memory) {
      memcpy(row->state->memory, row->encoded->memory, row->state->bytes);
    }
  }
  *fed = plan.start;
  for (size_t step = 0; step < plan.steps; step++) {
    *position = (int32_t)step;
    run(decoder);
    for (size_t i = 0; i < plan.suppressed; i++) logits[plan.suppressed_ids[i]] = -1e30f;
    tokens[step] = likeliest(logits, plan.vocabulary);
    if (tokens[step] == plan.end) return step + 1;
    for (size_t i = 0; i < plan.rows; i++) {
      Row *row = &plan.row[i];
      if (!strcmp(row->kind, "carried")) {
        memcpy(row->state->memory, row->update->memory, row->state->bytes);
      } else if (!strcmp(row->kind, "appended")) {
        for (size_t block = 0; block < row->outer; block++) {
          memcpy((char *)row->state->memory + (block * row->length + step) * row->inner,
                 (char *)row->update->memory + block * row->inner, row->inner);
        }
      }
    }
    *fed = tokens[step]; /* only now: a graph may put out the token itself as a state */
  }
  return plan.steps;
}

int main(int count, char **words) {
  if (count != 8) fail("usage:", "captions LIBRARY ENCODER DECODER PLAN PIXELS ENCODER_THREADS DECODER_THREADS", 0);
  static Graph encoder, decoder;
  Handle environment;
  bind_library(words[1]);
  read_plan(words[4]);
  check(api.environment(0, NULL, &environment), "CreateEnvironment");
  load(&encoder, environment, words[2], words[6], NULL);
  load(&decoder, environment, words[3], words[7], &encoder);
  for (size_t i = 0; i < plan.rows; i++) {
    Row *row = &plan.row[i];
    row->state = required(decoder.input, decoder.inputs, row->name);
    row->encoded = named(encoder.output, encoder.outputs, row->name);
    for (size_t k = 0; k < plan.aliases && row->encoded == NULL; k++) {
      if (strcmp(plan.alias[k][0], row->name)) continue;
      row->encoded = named(encoder.output, encoder.outputs, plan.alias[k][1]);
    }
    if (strcmp(row->kind, "constant")) row->update = required(decoder.output, decoder.outputs, row->name);
  }
  Tensor *image = required(encoder.input, encoder.inputs, "image");
  FILE *file = fopen(words[5], "rb");
  if (file == NULL || image->bytes != plan.image_bytes) fail("cannot use", words[5], 0);
  fseek(file, 0, SEEK_END);
  size_t photographs = (size_t)ftell(file) / plan.image_bytes;
  char *pixels = malloc(photographs * plan.image_bytes);
  rewind(file);
  if (pixels == NULL || fread(pixels, plan.image_bytes, photographs, file) != photographs) {
    fail("cannot read", words[5], 0);
  }
  fclose(file);

  /* The encoder's outputs are kept aside for every photograph, because encoding and decoding are timed apart. */
  size_t encoded_bytes = 0, asked;
  for (size_t i = 0; i < encoder.outputs; i++) encoded_bytes += encoder.output[i].bytes;
  char *encoded = malloc(photographs * encoded_bytes);
  int *tokens = malloc(photographs * plan.steps * sizeof(int));
  size_t *lengths = malloc(photographs * sizeof(size_t));
  if (encoded == NULL || tokens == NULL || lengths == NULL) fail("no memory for", "captions", 0);
  printf("ready\n");
  fflush(stdout);
  while (scanf("%zu", &asked) == 1) {
    if (asked > photographs) asked = photographs;
    int64_t encode_ns = 0, decode_ns = 0;
    for (size_t p = 0; p < asked; p++) {
      int64_t started = now_ns();
      memcpy(image->memory, pixels + p * plan.image_bytes, plan.image_bytes);
      run(&encoder);
      encode_ns += now_ns() - started;
      char *place = encoded + p * encoded_bytes;
      for (size_t i = 0; i < encoder.outputs; place += encoder.output[i++].bytes) {
        memcpy(place, encoder.output[i].memory, encoder.output[i].bytes);
      }
    }
    for (size_t p = 0; p < asked; p++) {
      int64_t started = now_ns();
      char *place = encoded + p * encoded_bytes;
      for (size_t i = 0; i < encoder.outputs; place += encoder.output[i++].bytes) {
        memcpy(encoder.output[i].memory, place, encoder.output[i].bytes);
      }
      lengths[p] = decode(&decoder, tokens + p * plan.steps);
      decode_ns += now_ns() - started;
    }
    printf("%" PRId64 " %" PRId64 "\n", encode_ns, decode_ns);
    for (size_t p = 0; p < asked; p++) {
      for (size_t i = 0; i < lengths[p]; i++) printf("%d ", tokens[p * plan.steps + i]);
      printf("\n");
    }
    fflush(stdout);
  }
  return 0;
}
