/* A server of one SavedModel without Python: requests in, responses out.
 *
 * Loads a model by TensorFlow's C API, as TensorFlow Serving does, and answers
 * standard input, the TFRecords of a `tf_serving_warmup_requests` file.
 *
 *     predict MODEL_FOLDER < requests > answers
 *
 * For each PredictionLog it writes a byte (1 answered, 0 refused), the
 * nanoseconds that the model took, a length (8 bytes each, little-endian) and
 * a PredictResponse or the error's text. Tensors pass as TensorProto bytes
 * through TensorFlow's own ParseTensor and SerializeTensor, so only the
 * messages around them are taken apart here.
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tensorflow/c/c_api.h"

enum { MAX_TENSORS = 128 };

typedef struct {
  const uint8_t* at;
  size_t size;
} Bytes;

static void fail(const char* why) {
  fprintf(stderr, "predict: %s\n", why);
  exit(1);
}

static void check(TF_Status* status) {
  if (TF_GetCode(status) != TF_OK) fail(TF_Message(status));
}

static void* allocate(size_t size) {
  void* memory = malloc(size ? size : 1);
  if (!memory) fail("out of memory");
  return memory;
}

/* Protocol buffers ------------------------------------------------------- */

typedef struct {
  uint32_t number;
  uint64_t varint;
  Bytes bytes;
} Field;

static uint64_t take_varint(Bytes* message) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (!message->size) fail("message ends inside a number");
    uint8_t byte = *message->at++;
    message->size--;
    value |= (uint64_t)(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  fail("number of more than 64 bits");
  return 0;
}

static Bytes take(Bytes* message, uint64_t size) {
  if (size > message->size) fail("message ends inside a field");
  Bytes taken = {message->at, size};
  message->at += size;
  message->size -= size;
  return taken;
}

static bool next_field(Bytes* message, Field* field) {
  if (!message->size) return false;
  uint64_t key = take_varint(message);
  *field = (Field){.number = (uint32_t)(key >> 3)};
  switch (key & 7) {
    case 0: field->varint = take_varint(message); break;
    case 1: field->bytes = take(message, 8); break;
    case 2: field->bytes = take(message, take_varint(message)); break;
    case 5: field->bytes = take(message, 4); break;
    default: fail("unknown wire type");
  }
  return true;
}

/* The last field of this number, which is the one that counts. */
static Bytes child(Bytes message, uint32_t number) {
  Bytes found = {NULL, 0};
  for (Field field; next_field(&message, &field);)
    if (field.number == number) found = field.bytes;
  return found;
}

static uint64_t number_of(Bytes message, uint32_t number) {
  uint64_t found = 0;
  for (Field field; next_field(&message, &field);)
    if (field.number == number) found = field.varint;
  return found;
}

static bool equal(Bytes a, Bytes b) {
  return a.size == b.size && (!a.size || !memcmp(a.at, b.at, a.size));
}

/* The value of a map<string, message>'s entry. */
static bool entry(Bytes message, uint32_t map, Bytes key, Bytes* value) {
  for (Field field; next_field(&message, &field);)
    if (field.number == map && equal(child(field.bytes, 1), key)) {
      *value = child(field.bytes, 2);
      return true;
    }
  return false;
}

static size_t put_varint(uint8_t* out, uint64_t value) {
  size_t size = 0;
  for (; value >= 0x80; value >>= 7) out[size++] = (uint8_t)(value | 0x80);
  out[size++] = (uint8_t)value;
  return size;
}

typedef struct {
  uint8_t* at;
  size_t size, capacity;
} Buffer;

static void put(Buffer* out, const void* at, size_t size) {
  if (out->size + size > out->capacity) {
    out->capacity = 2 * (out->size + size);
    out->at = realloc(out->at, out->capacity);
    if (!out->at) fail("out of memory");
  }
  if (size) memcpy(out->at + out->size, at, size);
  out->size += size;
}

static void put_field(Buffer* out, uint32_t number, Bytes value) {
  uint8_t head[20];
  size_t size = put_varint(head, (uint64_t)number << 3 | 2);
  size += put_varint(head + size, value.size);
  put(out, head, size);
  put(out, value.at, value.size);
}

/* Tensors ---------------------------------------------------------------- */

/* A graph of ParseTensor and SerializeTensor operations, one of each dtype. */
typedef struct {
  TF_Graph* graph;
  TF_Session* session;
} Codec;

static TF_Output operation(
    Codec codec, const char* type, const char* attribute, TF_DataType dtype,
    const TF_Output* input, TF_Status* status) {
  char name[64];
  snprintf(name, sizeof name, "%s_%d", type, (int)dtype);
  TF_Operation* found = TF_GraphOperationByName(codec.graph, name);
  if (!found) {
    TF_OperationDescription* made = TF_NewOperation(codec.graph, type, name);
    if (input) TF_AddInput(made, *input);
    TF_SetAttrType(made, attribute, dtype);
    found = TF_FinishOperation(made, status);
  }
  return (TF_Output){found, 0};
}

static TF_Tensor* converted(
    Codec codec, const char* type, const char* attribute, TF_DataType dtype,
    TF_DataType fed, TF_Tensor* tensor, TF_Status* status) {
  TF_Output input =
      operation(codec, "Placeholder", "dtype", fed, NULL, status);
  if (TF_GetCode(status) != TF_OK) return NULL;
  TF_Output output =
      operation(codec, type, attribute, dtype, &input, status);
  if (TF_GetCode(status) != TF_OK) return NULL;
  TF_Tensor* result = NULL;
  TF_SessionRun(
      codec.session, NULL, &input, &tensor, 1, &output, &result, 1, NULL, 0,
      NULL, status);
  return result;
}

static TF_Tensor* parsed_tensor(Codec codec, Bytes proto, TF_Status* status) {
  TF_Tensor* text =
      TF_AllocateTensor(TF_STRING, NULL, 0, sizeof(TF_TString));
  TF_TString* string = TF_TensorData(text);
  TF_StringInit(string);
  TF_StringCopy(string, (const char*)proto.at, proto.size);
  TF_DataType dtype = (TF_DataType)number_of(proto, 1);
  TF_Tensor* tensor = converted(
      codec, "ParseTensor", "out_type", dtype, TF_STRING, text, status);
  TF_DeleteTensor(text);
  return tensor;
}

static void put_tensor(
    Codec codec, Buffer* out, Bytes key, TF_Tensor* tensor,
    TF_Status* status) {
  TF_DataType dtype = TF_TensorType(tensor);
  TF_Tensor* text = converted(
      codec, "SerializeTensor", "T", dtype, dtype, tensor, status);
  check(status);
  const TF_TString* string = TF_TensorData(text);
  Bytes proto = {
      (const uint8_t*)TF_StringGetDataPointer(string),
      TF_StringGetSize(string)};
  Buffer pair = {0};
  put_field(&pair, 1, key);
  put_field(&pair, 2, proto);
  put_field(out, 1, (Bytes){pair.at, pair.size});
  free(pair.at);
  TF_DeleteTensor(text);
}

/* The model -------------------------------------------------------------- */

typedef struct {
  TF_Graph* graph;
  TF_Session* session;
  TF_Buffer* meta;
} Model;

static Model loaded(const char* folder, TF_Status* status) {
  const char* tags[] = {"serve"};
  Model model = {TF_NewGraph(), NULL, TF_NewBuffer()};
  TF_SessionOptions* options = TF_NewSessionOptions();
  model.session = TF_LoadSessionFromSavedModel(
      options, NULL, folder, tags, 1, model.graph, model.meta, status);
  check(status);
  TF_DeleteSessionOptions(options);
  return model;
}

/* "serving_default_examples:0" of a TensorInfo to the output of the graph. */
static TF_Output graph_output(Model model, Bytes info) {
  Bytes named = child(info, 1);
  char* name = allocate(named.size + 1);
  memcpy(name, named.at, named.size);
  name[named.size] = 0;
  char* colon = strrchr(name, ':');
  if (!colon) fail("a tensor's name in the signature has no colon");
  *colon = 0;
  TF_Output output = {
      TF_GraphOperationByName(model.graph, name), atoi(colon + 1)};
  if (!output.oper) fail("a tensor of the signature is not in the graph");
  free(name);
  return output;
}

/* Tensors of one call; the signature is the model's SignatureDef. */
typedef struct {
  int inputs, outputs;
  uint64_t took_ns;
  TF_Output fed[MAX_TENSORS], fetched[MAX_TENSORS];
  TF_Tensor *given[MAX_TENSORS], *made[MAX_TENSORS];
  Bytes keys[MAX_TENSORS];
} Call;

static const char* feed(
    Model model, Codec codec, Bytes signature, Bytes request, Call* call,
    TF_Status* status) {
  for (Field field; next_field(&request, &field);) {
    if (field.number != 2) continue;
    Bytes info;
    if (!entry(signature, 1, child(field.bytes, 1), &info))
      return "the signature has no such input";
    if (call->inputs == MAX_TENSORS) return "too many inputs";
    TF_Tensor* tensor =
        parsed_tensor(codec, child(field.bytes, 2), status);
    if (!tensor) return TF_Message(status);
    call->fed[call->inputs] = graph_output(model, info);
    call->given[call->inputs++] = tensor;
  }
  return NULL;
}

static void fetch(Model model, Bytes signature, Call* call) {
  for (Field field; next_field(&signature, &field);) {
    if (field.number != 2) continue;
    if (call->outputs == MAX_TENSORS) fail("too many outputs");
    call->keys[call->outputs] = child(field.bytes, 1);
    call->fetched[call->outputs++] =
        graph_output(model, child(field.bytes, 2));
  }
}

static uint64_t now_ns(void) {
  struct timespec now;
  timespec_get(&now, TIME_UTC);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Puts a PredictResponse, or returns what is wrong with the request. */
static const char* answered(
    Model model, Codec codec, Bytes request, Buffer* out, Call* call,
    TF_Status* status) {
  Bytes meta = {model.meta->data, model.meta->length}, signature;
  if (!entry(meta, 5, child(child(request, 1), 3), &signature))
    return "the model has no such signature";
  const char* wrong = feed(model, codec, signature, request, call, status);
  if (wrong) return wrong;
  fetch(model, signature, call);
  uint64_t started_ns = now_ns();
  TF_SessionRun(
      model.session, NULL, call->fed, call->given, call->inputs,
      call->fetched, call->made, call->outputs, NULL, 0, NULL, status);
  call->took_ns = now_ns() - started_ns;
  if (TF_GetCode(status) != TF_OK) return TF_Message(status);
  for (int i = 0; i < call->outputs; i++)
    put_tensor(codec, out, call->keys[i], call->made[i], status);
  return NULL;
}

static void answer(Model model, Codec codec, Bytes log) {
  TF_Status* status = TF_NewStatus();
  Buffer out = {0};
  Call* call = allocate(sizeof *call);
  memset(call, 0, sizeof *call);
  Bytes request = child(child(log, 6), 1);
  const char* wrong = answered(model, codec, request, &out, call, status);
  uint64_t size = wrong ? strlen(wrong) : out.size;
  fputc(wrong ? 0 : 1, stdout);
  fwrite(&call->took_ns, sizeof call->took_ns, 1, stdout);
  fwrite(&size, sizeof size, 1, stdout);
  fwrite(wrong ? (const void*)wrong : out.at, 1, size, stdout);
  for (int i = 0; i < call->inputs; i++) TF_DeleteTensor(call->given[i]);
  for (int i = 0; i < call->outputs; i++)
    if (call->made[i]) TF_DeleteTensor(call->made[i]);
  free(call);
  free(out.at);
  TF_DeleteStatus(status);
}

int main(int count, char** arguments) {
  if (count != 2) fail("usage: predict MODEL_FOLDER < requests > answers");
  TF_Status* status = TF_NewStatus();
  Model model = loaded(arguments[1], status);
  Codec codec = {TF_NewGraph(), NULL};
  TF_SessionOptions* options = TF_NewSessionOptions();
  codec.session = TF_NewSession(codec.graph, options, status);
  check(status);
  /* A TFRecord: length, its checksum, the record, its checksum. */
  uint64_t size;
  uint32_t checksum;
  while (fread(&size, sizeof size, 1, stdin) == 1) {
    uint8_t* record = allocate(size);
    if (fread(&checksum, sizeof checksum, 1, stdin) != 1 ||
        fread(record, 1, size, stdin) != size ||
        fread(&checksum, sizeof checksum, 1, stdin) != 1)
      fail("standard input ends inside a record");
    answer(model, codec, (Bytes){record, size});
    free(record);
  }
  return fflush(stdout) ? 1 : 0;
}
