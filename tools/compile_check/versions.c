/* Lets the TensorRT 11 Python bindings drive the TensorRT-RTX libraries.
 *
 * The bindings hand their own version number to three factories, and these refuse any number but the
 * library's. This object is preloaded in front of the library: it answers to the same names, puts in the
 * number that the library itself reports and calls on. All other symbols resolve to the library directly.
 * For development and tests only.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static void *next_symbol(const char *name)
{
    void *symbol = dlsym(RTLD_NEXT, name);
    if (symbol == NULL) {
        fprintf(stderr, "versions.c: %s: %s\n", name, dlerror());
        abort();
    }
    return symbol;
}

static int32_t library_version(void)
{
    int32_t (*version)(void) = (int32_t (*)(void))next_symbol("getInferLibVersion");
    return version();
}

void *createInferBuilder_INTERNAL(void *logger, int32_t ignored)
{
    (void)ignored;
    void *(*create)(void *, int32_t) = (void *(*)(void *, int32_t))next_symbol(__func__);
    return create(logger, library_version());
}

void *createInferRuntime_INTERNAL(void *logger, int32_t ignored)
{
    (void)ignored;
    void *(*create)(void *, int32_t) = (void *(*)(void *, int32_t))next_symbol(__func__);
    return create(logger, library_version());
}

void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t ignored)
{
    (void)ignored;
    void *(*create)(void *, void *, int32_t) = (void *(*)(void *, void *, int32_t))next_symbol(__func__);
    return create(engine, logger, library_version());
}

/* The plug-in library is not part of TensorRT-RTX; no graph of ours needs a plug-in. */
bool initLibNvInferPlugins(void *logger, const char *library_namespace)
{
    (void)logger;
    (void)library_namespace;
    return true;
}
