// cuBLASLt without a device, for tests/cuda/cublaslt.rs: the functions that kvfold uses, over the
// host memory of libcuda.cpp. It computes what the descriptors say, one number at a time,
// and refuses what the real one could not do, or what kvfold promises not to ask for;
// why goes to stderr. FAKE_CUBLASLT, read at every call, says what it pretends to be:
//   FAKE_CUBLASLT="version create algorithms multiply"
//   version     what cublasLtGetVersion gives, as in 130102
//   create      what cublasLtCreate gives
//   algorithms  how many there are for a product
//   multiply    what cublasLtMatmul gives
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "emulator/half.h"

using Status = int;
enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { R_32F = 0, R_16F = 2, R_16BF = 14 };

struct Pretend {
    int version = 130102, create = SUCCESS, algorithms = 1, multiply = SUCCESS;
    Pretend() {
        if (const char* text = getenv("FAKE_CUBLASLT"))
            sscanf(text, "%d %d %d %d", &version, &create, &algorithms, &multiply);
    }
};

// Objects that live, algorithms chosen, products computed.
static uint64_t counts[3];

struct Layout {
    int type;
    uint64_t rows, cols;
    int64_t ld;
};
struct Product {
    int compute, scale, transposed[2] = {0, 0};
};
struct Preference {
    uint64_t workspace = 0;
    uint32_t reduction = 7, alignment[4] = {256, 256, 256, 256};
};
struct Algorithm {
    uint64_t m, n, k, workspace, alignment, types;
    uint64_t unused[2];
};
static_assert(sizeof(Algorithm) == 64, "as cublasLtMatmulAlgo_t");
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    Status status;
    float waves;
    int reserved[4];
};

#define REQUIRE(condition)                                                                         \
    if (!(condition)) return fprintf(stderr, "libcublasLt: %s: %s\n", __func__, #condition), INVALID_VALUE

static bool in_context() {
    using Get = int (*)(void**);
    void* context = nullptr;
    auto get = reinterpret_cast<Get>(dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuCtxGetCurrent"));
    return get && get(&context) == 0 && context;
}

template <class T> static Status make(T** to, T value) {
    ++counts[0];
    return *to = new T(value), SUCCESS;
}
template <class T> static Status destroy(T* object) {
    REQUIRE(object);
    --counts[0];
    return delete object, SUCCESS;
}

static double number(int type, const void* at, uint64_t i) {
    if (type == R_32F) return static_cast<const float*>(at)[i];
    uint16_t bits = static_cast<const uint16_t*>(at)[i];
    return type == R_16F ? kvfold::emulator::float_from_f16(bits) : kvfold::emulator::float_from_bf16(bits);
}
static void set_number(int type, void* at, uint64_t i, double x) {
    if (type == R_32F) static_cast<float*>(at)[i] = float(x);
    else if (type == R_16F) static_cast<uint16_t*>(at)[i] = kvfold::emulator::f16_from_float(float(x));
    else static_cast<uint16_t*>(at)[i] = kvfold::emulator::bf16_from_float(float(x));
}

// Whether a matrix fits its allocation, whose size libcuda.cpp writes before it.
static bool fits(const void* memory, const Layout& layout) {
    size_t bytes = *reinterpret_cast<const size_t*>(static_cast<const char*>(memory) - 256);
    return ((layout.cols - 1) * layout.ld + layout.rows) * (layout.type == R_32F ? 4 : 2) <= bytes;
}

// The sizes of op(A) · op(B) = C if the layouts agree.
static bool sizes(const Product& product, const Layout& a, const Layout& b, const Layout& c, Algorithm* to) {
    uint64_t m = product.transposed[0] ? a.cols : a.rows, k = product.transposed[0] ? a.rows : a.cols;
    uint64_t n = product.transposed[1] ? b.rows : b.cols, k2 = product.transposed[1] ? b.cols : b.rows;
    bool typed = a.type == b.type && a.type != R_32F && (c.type == a.type || c.type == R_32F);
    *to = {m, n, k, 0, 0, uint64_t(a.type) << 32 | uint64_t(c.type), {0, 0}};
    return k == k2 && c.rows == m && c.cols == n && typed && m && n && k;
}

extern "C" {

int fake_cublaslt_counts(void* to) { return memcpy(to, counts, sizeof counts), 0; }

size_t cublasLtGetVersion() { return Pretend().version; }
const char* cublasLtGetStatusName(Status status) {
    return status == INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE" : "CUBLAS_STATUS_AS_ASKED";
}
Status cublasLtCreate(int** handle) {
    REQUIRE(in_context());
    if (Status status = Pretend().create) return status;
    return make(handle, 1);
}
Status cublasLtDestroy(int* handle) {
    REQUIRE(in_context());
    return destroy(handle);
}

Status cublasLtMatrixLayoutCreate(Layout** to, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    REQUIRE((type == R_32F || type == R_16F || type == R_16BF) && ld >= int64_t(rows));
    return make(to, Layout{type, rows, cols, ld});
}
Status cublasLtMatrixLayoutDestroy(Layout* layout) { return destroy(layout); }

Status cublasLtMatmulDescCreate(Product** to, int compute, int scale) {
    REQUIRE(compute == 68 && scale == R_32F); // CUBLAS_COMPUTE_32F
    return make(to, Product{compute, scale});
}
Status cublasLtMatmulDescDestroy(Product* product) { return destroy(product); }
Status cublasLtMatmulDescSetAttribute(Product* product, int attribute, const void* value, size_t bytes) {
    REQUIRE((attribute == 3 || attribute == 4) && bytes == 4); // TRANSA, TRANSB
    int operation = *static_cast<const int*>(value);
    REQUIRE(operation == 0 || operation == 1); // N, T
    return product->transposed[attribute - 3] = operation, SUCCESS;
}

Status cublasLtMatmulPreferenceCreate(Preference** to) { return make(to, Preference()); }
Status cublasLtMatmulPreferenceDestroy(Preference* preference) { return destroy(preference); }
Status cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* value, size_t bytes) {
    void* to = nullptr;
    size_t expected = 4;
    switch (attribute) {
    case 1: to = &p->workspace, expected = 8; break;
    case 3: to = &p->reduction; break;
    case 5: case 6: case 7: case 8: to = &p->alignment[attribute - 5]; break;
    }
    REQUIRE(to && bytes == expected);
    return memcpy(to, value, bytes), SUCCESS;
}

Status cublasLtMatmulAlgoGetHeuristic(int* handle, Product* product, Layout* a, Layout* b, Layout* c, Layout* d,
                                      Preference* p, int asked, Heuristic* results, int* given) {
    REQUIRE(handle && in_context() && c == d && asked == 1);
    REQUIRE(p->reduction == 2); // sums in f32, in a step of their own
    REQUIRE(p->workspace > 0);
    for (uint32_t alignment : p->alignment) REQUIRE(alignment == 16);
    Algorithm algorithm;
    REQUIRE(sizes(*product, *a, *b, *c, &algorithm));
    ++counts[1];
    algorithm.workspace = p->workspace;
    algorithm.alignment = p->alignment[0];
    *given = Pretend().algorithms;
    if (*given == 0) return NOT_SUPPORTED;
    *results = Heuristic{algorithm, p->workspace, SUCCESS, 1.0f, {}};
    return SUCCESS;
}

Status cublasLtMatmul(int* handle, Product* product, const float* alpha, const void* a, Layout* la, const void* b,
                      Layout* lb, const float* beta, const void* c, Layout* lc, void* d, Layout* ld,
                      const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
    if (Status status = Pretend().multiply) return status;
    REQUIRE(handle && in_context() && stream && c == d && lc == ld);
    Algorithm asked;
    REQUIRE(sizes(*product, *la, *lb, *lc, &asked));
    REQUIRE(asked.m == algorithm->m && asked.n == algorithm->n && asked.k == algorithm->k);
    REQUIRE(asked.types == algorithm->types && workspace_bytes >= algorithm->workspace);
    for (const void* pointer : {a, b, c}) REQUIRE(uint64_t(pointer) % algorithm->alignment == 0);
    REQUIRE(fits(a, *la) && fits(b, *lb) && fits(d, *ld));
    REQUIRE(fits(workspace, Layout{R_16F, workspace_bytes / 2, 1, 0}));
    ++counts[2];
    memset(workspace, 0xff, workspace_bytes);
    bool ta = product->transposed[0], tb = product->transposed[1];
    for (uint64_t j = 0; j < asked.n; ++j) {
        for (uint64_t i = 0; i < asked.m; ++i) {
            double sum = 0;
            for (uint64_t l = 0; l < asked.k; ++l)
                sum += number(la->type, a, ta ? i * la->ld + l : l * la->ld + i) *
                       number(lb->type, b, tb ? l * lb->ld + j : j * lb->ld + l);
            double before = *beta == 0 ? 0 : *beta * number(lc->type, c, j * lc->ld + i);
            set_number(ld->type, d, j * ld->ld + i, *alpha * sum + before);
        }
    }
    return SUCCESS;
}
}
