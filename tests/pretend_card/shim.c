/* A CUDA runtime without a card, put before the real one with LD_PRELOAD: what device guards, streams and events of
   PyTorch ask is answered as on one H100 that is always ready. Nothing is ever computed. */
#include <string.h>

#define DRIVER_VERSION 13000
#define MEMORY (80ul << 30)

enum { MULTIPROCESSORS = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 }; /* cudaDeviceAttr */
enum { READY = 0, NOT_CAPTURING = 0 };

static __thread int current = 0;

int cudaGetDevice(int *device) { *device = current; return 0; }
int cudaSetDevice(int device) { current = device; return 0; }
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaDriverGetVersion(int *version) { *version = DRIVER_VERSION; return 0; }

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == CAPABILITY_MAJOR ? 9 : attribute == CAPABILITY_MINOR ? 0 : attribute == MULTIPROCESSORS ? 132 : 1;
    return 0;
}
int cudaGetDeviceProperties(void *properties, int device) {
    memset(properties, 0, 700);
    strcpy(properties, "pretend H100"); /* the name comes first */
    return 0;
}

int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }

int cudaMemGetInfo(unsigned long *unused, unsigned long *all) { *unused = *all = MEMORY; return 0; }
int cudaFree(void *memory) { return 0; }

int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return 0;
}
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = (void *)16; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = NOT_CAPTURING; return 0; }
int cudaStreamGetCaptureInfo(void *stream, int *status) { *status = NOT_CAPTURING; return 0; }
int cudaStreamQuery(void *stream) { return READY; }
int cudaStreamSynchronize(void *stream) { return 0; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }

int cudaEventCreateWithFlags(void **event, unsigned flags) { *event = (void *)32; return 0; }
int cudaEventDestroy(void *event) { return 0; }
int cudaEventRecord(void *event, void *stream) { return 0; }
int cudaEventQuery(void *event) { return READY; }
int cudaEventSynchronize(void *event) { return 0; }
