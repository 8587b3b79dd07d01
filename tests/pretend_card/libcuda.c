/* A driver without a card, found as libcuda.so.1: there is one context, and it is the current one. */
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    if (flags) *flags = 0;
    if (active) *active = 1;
    return 0;
}
int cuGetErrorString(int error, const char **words) { *words = "pretend"; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)64; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxFromGreenCtx(void) { return 0; }
