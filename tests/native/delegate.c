/* An external delegate for TensorFlow Lite that takes TANH, for the tests: it computes it rightly, or does what its
 * options say. A custom op named as the Edge TPU's compiler names its own is a TANH to it as well. The structs are those of TensorFlow Lite's C interface for delegates, as far as they are needed here;
 * only their layout matters, and it has been the same from 2.14 on.
 *
 *   take=none          take no op
 *   compute=wrong      TANH comes out as half of what it is
 *   fail=create        no delegate is made
 *   fail=prepare       the graph is refused
 *   fail=invoke        computing fails, from the first time on
 *   fail=later         computing fails from the third time on
 *   anything else      is an option that it does not know: no delegate is made
 */
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { STATUS_OK = 0, STATUS_ERROR = 1, STATUS_DELEGATE_ERROR = 2 };
enum { ALLOW_DYNAMIC_TENSORS = 1 };
enum { OP_TANH = 28, OP_DELEGATE = 51 };

typedef struct Context Context;
typedef struct Delegate Delegate;
typedef struct Node Node;
typedef struct Registration Registration;

typedef struct {
  int size;
  int data[];
} IntArray;

typedef struct { /* 112 bytes on a 64-bit machine */
  int type;
  float* data;
  IntArray* dims;
  float old_scale;
  int old_zero_point;
  int allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  Delegate* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  struct {
    int type;
    void* params;
  } quantization;
  void* sparsity;
  const IntArray* dims_signature;
} Tensor;

struct Node {
  IntArray* inputs;
  IntArray* outputs;
  IntArray* intermediates;
  IntArray* temporaries;
  void* user_data;
};

struct Registration {
  void* (*init)(Context*, const char*, size_t);
  void (*free)(Context*, void*);
  int (*prepare)(Context*, Node*);
  int (*invoke)(Context*, Node*);
  const char* (*profiling_string)(const Context*, const Node*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* external;
  void* async_kernel;
  uint64_t inplace;
};

struct Context {
  size_t tensors_size;
  int (*get_execution_plan)(Context*, IntArray**);
  Tensor* tensors;
  void* implementation;
  int (*resize_tensor)(Context*, Tensor*, IntArray*);
  void (*report_error)(Context*, const char*, ...);
  int (*add_tensors)(Context*, int, int*);
  int (*get_node)(Context*, int, Node**, Registration**);
  int (*replace_nodes)(Context*, Registration, const IntArray*, Delegate*);
};

struct Delegate {
  void* data;
  int (*prepare)(Context*, Delegate*);
  void* copy_from;
  void* copy_to;
  void* free_buffer;
  int64_t flags;
  void* opaque;
};

typedef struct { /* what a kernel that replaces nodes is initialised with */
  Delegate* delegate;
  IntArray* nodes;
  IntArray* inputs;
  IntArray* outputs;
} Replaced;

typedef struct {
  Delegate delegate; /* first, so that a pointer to one is a pointer to the other */
  bool takes, wrong, fails_to_prepare;
  int invokes_left; /* -1: without end */
} Own;

static void* kernel_init(Context* context, const char* buffer, size_t length) {
  (void)context, (void)length;
  return ((const Replaced*)buffer)->delegate;
}

static void kernel_free(Context* context, void* data) { (void)context, (void)data; }

static int kernel_prepare(Context* context, Node* node) {
  (void)context, (void)node;
  return STATUS_OK;
}

static int kernel_invoke(Context* context, Node* node) {
  Own* own = node->user_data;
  if (own->invokes_left == 0) {
    context->report_error(context, "the accelerator was pulled out. ");
    return STATUS_ERROR;
  }
  if (own->invokes_left > 0) own->invokes_left--;
  for (int k = 0; k < node->outputs->size; k++) {
    const Tensor* in = &context->tensors[node->inputs->data[k]];
    Tensor* out = &context->tensors[node->outputs->data[k]];
    for (size_t i = 0; i < in->bytes / sizeof(float); i++) out->data[i] = tanhf(in->data[i]) * (own->wrong ? 0.5f : 1);
  }
  return STATUS_OK;
}

static bool is_tanh(const Registration* registration) {
  return registration->builtin_code == OP_TANH ||
         (registration->custom_name && !strcmp(registration->custom_name, "edgetpu-custom-op"));
}

static int prepare(Context* context, Delegate* delegate) {
  Own* own = (Own*)delegate;
  IntArray* plan;
  if (own->fails_to_prepare) {
    context->report_error(context, "no memory for this graph on the accelerator. ");
    return STATUS_DELEGATE_ERROR;
  }
  if (context->get_execution_plan(context, &plan) != STATUS_OK) return STATUS_ERROR;
  IntArray* taken = malloc(sizeof(int) * (size_t)(plan->size + 1));
  if (!taken) return STATUS_ERROR;
  taken->size = 0;
  for (int i = 0; own->takes && i < plan->size; i++) {
    Node* node;
    Registration* registration;
    if (context->get_node(context, plan->data[i], &node, &registration) == STATUS_OK && is_tanh(registration))
      taken->data[taken->size++] = plan->data[i];
  }
  Registration kernel = {.init = kernel_init,
                         .free = kernel_free,
                         .prepare = kernel_prepare,
                         .invoke = kernel_invoke,
                         .builtin_code = OP_DELEGATE,
                         .custom_name = "TestDelegate",
                         .version = 1};
  int status = taken->size ? context->replace_nodes(context, kernel, taken, delegate) : STATUS_OK;
  free(taken);
  return status;
}

Delegate* tflite_plugin_create_delegate(char** keys, char** values, size_t count, void (*report)(const char*)) {
  Own* own = calloc(1, sizeof(Own));
  if (!own) return NULL;
  own->delegate.prepare = prepare;
  own->delegate.flags = ALLOW_DYNAMIC_TENSORS; /* or all ops are prepared before it is asked, the custom one too */
  own->takes = true;
  own->invokes_left = -1;
  count &= 0xffffffff; /* Python says int */
  for (size_t i = 0; i < count; i++) {
    const char* problem = NULL;
    if (!strcmp(keys[i], "take") && !strcmp(values[i], "none"))
      own->takes = false;
    else if (!strcmp(keys[i], "compute") && !strcmp(values[i], "wrong"))
      own->wrong = true;
    else if (!strcmp(keys[i], "compute") && !strcmp(values[i], "right"))
      own->wrong = false;
    else if (!strcmp(keys[i], "fail") && !strcmp(values[i], "prepare"))
      own->fails_to_prepare = true;
    else if (!strcmp(keys[i], "fail") && !strcmp(values[i], "invoke"))
      own->invokes_left = 0;
    else if (!strcmp(keys[i], "fail") && !strcmp(values[i], "later"))
      own->invokes_left = 2;
    else if (!strcmp(keys[i], "fail") && !strcmp(values[i], "create"))
      problem = "there is no accelerator";
    else
      problem = "an option that is not known";
    if (problem) {
      report(problem);
      free(own);
      return NULL;
    }
  }
  return &own->delegate;
}

void tflite_plugin_destroy_delegate(Delegate* delegate) { free(delegate); }
