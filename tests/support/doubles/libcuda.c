/* NVIDIA's driver library over host memory, for tests of the layer that calls it. Streams run at once; work that is
 * captured is kept and runs when its graph is launched. With P4Q_WITH_CUDA_H the compiler compares every function with
 * NVIDIA's own declaration. */
#ifdef P4Q_WITH_CUDA_H
#include <cuda.h>
#else
#include <stddef.h>
typedef int CUresult;
typedef int CUdevice;
typedef int CUdevice_attribute;
typedef int CUstreamCaptureMode;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
#endif
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STREAM ((CUstream)(uintptr_t)55)
#define DEPTH 16

struct copy { void *target; const void *source; size_t size; };
struct graph { int count; struct copy copies[64]; };

static int version = 12060, devices = 2, blocks, fail_code, depth, capturing, fail_capture;
static char failing[64], log_text[1 << 16];
static CUcontext stack[DEPTH];
static struct graph *captured;

void fake_reset(void) {
    version = 12060, devices = 2, blocks = fail_code = depth = capturing = fail_capture = 0;
    failing[0] = log_text[0] = 0;
}
void fake_driver(int driver_version, int device_count) { version = driver_version, devices = device_count; }
void fake_fail(const char *name, int code) { snprintf(failing, sizeof failing, "%s", name), fail_code = code; }
const char *fake_log(void) { return log_text; }
int fake_blocks(void) { return blocks; }
int fake_depth(void) { return depth; }
void *fake_current(void) { return depth ? stack[depth - 1] : NULL; }

static CUresult note(const char *name) {
    size_t used = strlen(log_text);
    snprintf(log_text + used, sizeof log_text - used, "%s ", name);
    return (CUresult)(strcmp(name, failing) ? 0 : fail_code);
}
#define CALL CUresult status = note(__func__); if (status) return status
#define NEEDS_CONTEXT CALL; if (!depth) return (CUresult)201

CUresult cuGetErrorName(CUresult error, const char **text) {
    *text = error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : error == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : error == 900 ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" : error == 100 ? "CUDA_ERROR_NO_DEVICE"
          : error == 201 ? "CUDA_ERROR_INVALID_CONTEXT" : error == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : NULL;
    return *text ? (CUresult)0 : (CUresult)1;
}
CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == 999 ? NULL : "in words";
    return *text ? (CUresult)0 : (CUresult)1;
}
CUresult cuInit(unsigned int flags) { CALL; return (CUresult)(flags ? 1 : devices ? 0 : 100); }
CUresult cuDriverGetVersion(int *found) { CALL; *found = version; return status; }
CUresult cuDeviceGetCount(int *count) { CALL; *count = devices; return status; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    CALL;
    if (ordinal < 0 || ordinal >= devices) return (CUresult)101;
    *device = ordinal;
    return status;
}
CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    CALL;
    snprintf(name, (size_t)size, device ? "Orin" : "Thor");
    return status;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    CALL;
    *bytes = (size_t)(device ? 8 : 128) << 30;
    return status;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    CALL;
    *value = attribute == 75 ? (device ? 8 : 11) : attribute == 76 ? (device ? 7 : 0) : attribute == 18 ? 1 : -1;
    return status;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    CALL;
    *context = (CUcontext)(uintptr_t)(1000 + device);
    return status;
}
CUresult cuCtxPushCurrent_v2(CUcontext context) {
    CALL;
    if (depth == DEPTH) return (CUresult)1;
    stack[depth++] = context;
    return status;
}
CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    NEEDS_CONTEXT;
    *context = stack[--depth];
    return status;
}
CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    NEEDS_CONTEXT;
    *total = (size_t)8 << 30, *free_bytes = *total - 5;
    return status;
}
/* Memory of a GPU has addresses beyond 32 bits; that of this process need not. */
#define ON_DEVICE ((CUdeviceptr)1 << 46)
#define HELD(address) ((void *)(uintptr_t)((address) ^ ON_DEVICE))

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    NEEDS_CONTEXT;
    if (size > (size_t)8 << 30) return (CUresult)2;
    *address = (CUdeviceptr)(uintptr_t)malloc(size) ^ ON_DEVICE;
    blocks++;
    return status;
}
CUresult cuMemFree_v2(CUdeviceptr address) { NEEDS_CONTEXT; free(HELD(address)); blocks--; return status; }
CUresult cuMemHostAlloc(void **address, size_t size, unsigned int flags) {
    NEEDS_CONTEXT;
    if (flags) return (CUresult)1;
    *address = malloc(size);
    blocks++;
    return status;
}
CUresult cuMemFreeHost(void *address) { NEEDS_CONTEXT; free(address); blocks--; return status; }

static CUresult copy(CUresult status, void *target, const void *source, size_t size, CUstream stream) {
    if (stream != STREAM) return (CUresult)400;
    if (!capturing) memcpy(target, source, size);
    else if (captured->count == 64) return (CUresult)1;
    else captured->copies[captured->count++] = (struct copy){target, source, size};
    return status;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t size, CUstream stream) {
    NEEDS_CONTEXT;
    return copy(status, HELD(target), source, size, stream);
}
CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t size, CUstream stream) {
    NEEDS_CONTEXT;
    return copy(status, target, HELD(source), size, stream);
}
CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    NEEDS_CONTEXT;
    if (flags != 1) return (CUresult)1;
    *stream = STREAM;
    blocks++;
    return status;
}
CUresult cuStreamSynchronize(CUstream stream) {
    NEEDS_CONTEXT;
    if (!capturing) return stream == STREAM ? status : (CUresult)400;
    fail_capture = 1; /* waiting is forbidden while a stream is captured */
    return (CUresult)900;
}
CUresult cuStreamDestroy_v2(CUstream stream) { NEEDS_CONTEXT; blocks -= stream == STREAM; return status; }
CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
    NEEDS_CONTEXT;
    if (stream != STREAM || mode != 1) return (CUresult)1;
    captured = calloc(1, sizeof *captured);
    capturing = 1;
    blocks++;
    return status;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    capturing = 0;
    *graph = NULL;
    CUresult status = note(__func__);
    if (!status && stream == STREAM && !fail_capture) {
        *graph = (CUgraph)captured;
        return status;
    }
    fail_capture = 0;
    free(captured);
    blocks--;
    return status ? status : (CUresult)900;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long flags) {
    NEEDS_CONTEXT;
    if (flags) return (CUresult)1;
    struct graph *made = malloc(sizeof *made);
    *made = *(struct graph *)graph;
    *executable = (CUgraphExec)made;
    blocks++;
    return status;
}
CUresult cuGraphDestroy(CUgraph graph) { NEEDS_CONTEXT; free(graph); blocks--; return status; }
CUresult cuGraphExecDestroy(CUgraphExec graph) { NEEDS_CONTEXT; free(graph); blocks--; return status; }
CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    NEEDS_CONTEXT;
    struct graph *graph = (struct graph *)executable;
    for (int i = 0; i < graph->count; i++) memcpy(graph->copies[i].target, graph->copies[i].source, graph->copies[i].size);
    return stream == STREAM ? status : (CUresult)400;
}
CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    NEEDS_CONTEXT;
    if (flags) return (CUresult)1;
    *event = (CUevent)malloc(8);
    blocks++;
    return status;
}
CUresult cuEventRecord(CUevent event, CUstream stream) { NEEDS_CONTEXT; return event && stream == STREAM ? status : (CUresult)400; }
CUresult cuEventSynchronize(CUevent event) { NEEDS_CONTEXT; return event ? status : (CUresult)400; }
#undef cuEventElapsedTime
CUresult cuEventElapsedTime(float *ms, CUevent start, CUevent end) { NEEDS_CONTEXT; *ms = 1.5f; return start && end ? status : (CUresult)400; }
CUresult cuEventDestroy_v2(CUevent event) { NEEDS_CONTEXT; free(event); blocks--; return status; }
