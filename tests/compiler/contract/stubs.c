/* The symbols that the TensorRT Python bindings need of their libraries, without the libraries.
 *
 * With them the bindings can be imported, and what they offer can be read, on a machine without TensorRT. Every factory
 * returns nothing, which the bindings turn into an exception.
 */
#include <stddef.h>

#define FACTORY(name) \
    void *name(void) \
    { \
        return NULL; \
    }

FACTORY(createInferBuilder_INTERNAL)
FACTORY(createInferRefitter_INTERNAL)
FACTORY(createInferRuntime_INTERNAL)
FACTORY(createNvOnnxParser_INTERNAL)
FACTORY(createNvOnnxParserRefitter_INTERNAL)
FACTORY(getBuilderPluginRegistry)
FACTORY(getPluginRegistry)

int getNvOnnxParserVersion(void)
{
    return 0;
}

int initLibNvInferPlugins(void)
{
    return 1;
}
