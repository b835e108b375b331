// libcublas and libcusolver: the CPU's BLAS and LAPACK behind NVIDIA's conventions. Matrices are column-major.
#include "plant.h"

#include <algorithm>
#include <cblas.h>
#include <cstring>

extern "C" void spotrf_(const char *uplo, const int *n, float *a, const int *lda, int *info, size_t uplo_length);

using namespace fake;

namespace {

// cublasStatus_t
enum { BLAS_NOT_INITIALIZED = 1, BLAS_ALLOC_FAILED = 3, BLAS_INVALID_VALUE = 7, BLAS_EXECUTION_FAILED = 13, BLAS_INTERNAL = 14,
       BLAS_NOT_SUPPORTED = 15 };
// cusolverStatus_t
enum { SOLVER_NOT_INITIALIZED = 1, SOLVER_ALLOC_FAILED = 2, SOLVER_INVALID_VALUE = 3, SOLVER_EXECUTION_FAILED = 6,
       SOLVER_INTERNAL = 7 };
enum { OP_N = 0, OP_T = 1, OP_C = 2 };
enum { LOWER = 0, UPPER = 1 };
enum { LEFT = 0, RIGHT = 1 };
enum { NON_UNIT = 0, UNIT = 1 };
enum { POINTER_HOST = 0, POINTER_DEVICE = 1 };
// cudaDataType
enum { R_32F = 0, R_16F = 2, R_16BF = 14 };
constexpr int COMPUTE_32F = 68;

constexpr uint64_t BLAS_BYTES = 32 << 20, SOLVER_BYTES = 16 << 20; // of device memory for a handle

struct Blas {
    void *stream = nullptr;
    int pointers = POINTER_HOST;
};
struct Solver {
    void *stream = nullptr;
};

int blas_call(const char *name, const std::function<void()> &body) {
    return call(name, Needs::context, BLAS_INTERNAL, BLAS_EXECUTION_FAILED, body);
}
int solver_call(const char *name, const std::function<void()> &body) {
    return call(name, Needs::context, SOLVER_INTERNAL, SOLVER_EXECUTION_FAILED, body);
}
Blas &blas_of(void *handle) {
    if (!state().live_blas.count(handle)) fail(BLAS_NOT_INITIALIZED, "the handle does not exist");
    return *(Blas *)handle;
}
Solver &solver_of(void *handle) {
    if (!state().live_solvers.count(handle)) fail(SOLVER_NOT_INITIALIZED, "the handle does not exist");
    return *(Solver *)handle;
}

// A scalar: behind a host pointer taken at once, behind one of the device when the call runs.
struct Scalar {
    float host;
    Address device;
    float on(Stream &stream) const {
        return device ? *(float *)touch(stream, device, 4, 4, Use::read, "a scalar") : host;
    }
};
Scalar scalar(const Blas &blas, const void *pointer) {
    if (!pointer) fail(BLAS_INVALID_VALUE, "a scalar is missing");
    if (blas.pointers == POINTER_DEVICE) return {0.0f, (Address)pointer};
    return {*(const float *)pointer, 0};
}

size_t width(int type) { return type == R_32F ? 4 : 2; }

// A matrix as it lies in memory (rows x columns).
struct Matrix {
    const char *name;
    Address address;
    int rows, columns, leading, type = R_32F;

    // Of its bytes; in the last column up to its last row alone.
    size_t bytes() const {
        if (rows == 0 || columns == 0) return 0;
        return width(type) * (size_t(columns - 1) * leading + rows);
    }
    float *touched(Stream &stream, Use use) const {
        return (float *)touch(stream, address, bytes(), width(type), use, name);
    }
    void check(int status) const {
        if (rows < 0 || columns < 0) fail(status, "%s has %d rows and %d columns", name, rows, columns);
        if (leading < std::max(1, rows)) fail(status, "%s has %d rows and leading dimension %d", name, rows, leading);
    }
    // Whether a column of the other shares a byte with one of these.
    bool overlaps(const Matrix &other) const {
        int64_t column = width(type) * int64_t(leading), tall = width(type) * int64_t(rows);
        if (!bytes() || !other.bytes()) return false;
        for (int j = 0; j < other.columns; j++) {
            int64_t begin = int64_t(other.address - address) + width(other.type) * int64_t(j) * other.leading;
            int64_t end = begin + width(other.type) * int64_t(other.rows);
            // The first column here that does not end before the other's begins.
            int64_t first = begin < tall ? 0 : (begin - tall) / column + 1;
            if (first < columns && first * column < end) return true;
        }
        return false;
    }
};

float widened(uint16_t bits, int type) {
    if (type == R_16F) {
        _Float16 half;
        memcpy(&half, &bits, 2);
        return half;
    }
    uint32_t whole = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &whole, 4);
    return value;
}

// The matrix in f32, and its leading dimension.
const float *in_f32(const Matrix &matrix, const float *at, std::vector<float> &copy, int &leading) {
    leading = matrix.leading;
    if (matrix.type == R_32F) return at;
    copy.resize(size_t(matrix.rows) * matrix.columns);
    for (int j = 0; j < matrix.columns; j++)
        for (int i = 0; i < matrix.rows; i++)
            copy[size_t(j) * matrix.rows + i] = widened(((const uint16_t *)at)[size_t(j) * matrix.leading + i], matrix.type);
    leading = std::max(1, matrix.rows);
    return copy.data();
}

CBLAS_TRANSPOSE transposition(int op) {
    if (op != OP_N && op != OP_T && op != OP_C) fail(BLAS_INVALID_VALUE, "operation %d", op);
    return op == OP_N ? CblasNoTrans : CblasTrans;
}

void count(const std::string &what, double operations) {
    Work &work = state().bill.products[what];
    work.count++;
    work.operations = operations;
}

const char *letter(int op) { return op == OP_N ? "n" : "t"; }

// C (m x n) <- alpha op(A) op(B) + beta C
void product(const char *name, void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, Matrix a, Matrix b,
             const void *beta, Matrix c) {
    Blas &blas = blas_of(handle);
    auto ta = transposition(op_a), tb = transposition(op_b);
    a.rows = op_a == OP_N ? m : k, a.columns = op_a == OP_N ? k : m;
    b.rows = op_b == OP_N ? k : n, b.columns = op_b == OP_N ? n : k;
    c.rows = m, c.columns = n;
    if (k < 0) fail(BLAS_INVALID_VALUE, "an inner dimension of %d", k);
    for (const Matrix *matrix : {&a, &b, &c}) matrix->check(BLAS_INVALID_VALUE);
    Scalar by = scalar(blas, alpha), of_c = scalar(blas, beta);
    count(text("%s %s%s %dx%dx%d", name, letter(op_a), letter(op_b), m, n, k), 2.0 * m * n * k);
    if (m == 0 || n == 0) return;
    enqueue(stream_of(blas.stream), name, [=](Stream &on) {
        const float *from_a = a.touched(on, Use::read), *from_b = b.touched(on, Use::read);
        float *to = c.touched(on, Use::write);
        if (c.overlaps(a) || c.overlaps(b)) fail(ILLEGAL_ADDRESS, "C overlaps an operand");
        if (dry()) return;
        float factor = by.on(on), keep = of_c.on(on);
        std::vector<float> copy_a, copy_b;
        int lda, ldb;
        from_a = in_f32(a, from_a, copy_a, lda), from_b = in_f32(b, from_b, copy_b, ldb);
        cblas_sgemm(CblasColMajor, ta, tb, m, n, k, factor, from_a, lda, from_b, ldb, keep, to, c.leading);
    });
}

} // namespace

// --- cuBLAS

EXPORT int cublasCreate_v2(void **handle) {
    return call("cublasCreate_v2", Needs::context, BLAS_ALLOC_FAILED, BLAS_EXECUTION_FAILED, [&] {
        take_elsewhere(BLAS_BYTES, BLAS_ALLOC_FAILED, "cuBLAS");
        *handle = new Blas;
        state().live_blas.insert(*handle);
    });
}
EXPORT int cublasDestroy_v2(void *handle) {
    if (planted("cublasDestroy_v2", {ARGUMENT(handle)})) return SUCCESS;
    State &s = state();
    bool known = s.live_blas.count(handle);
    int status = blas_call("cublasDestroy_v2", [&] { synchronise(stream_of(blas_of(handle).stream)); });
    if (known) {
        s.live_blas.erase(handle);
        s.elsewhere -= BLAS_BYTES;
        delete (Blas *)handle;
    }
    return status;
}
EXPORT int cublasSetStream_v2(void *handle, void *stream) {
    if (planted("cublasSetStream_v2", {ARGUMENT(stream)})) return SUCCESS;
    return blas_call("cublasSetStream_v2", [&] {
        stream_of(stream);
        blas_of(handle).stream = stream;
    });
}
EXPORT int cublasSetPointerMode_v2(void *handle, int mode) {
    return blas_call("cublasSetPointerMode_v2", [&] {
        if (mode != POINTER_HOST && mode != POINTER_DEVICE) fail(BLAS_INVALID_VALUE, "pointer mode %d", mode);
        blas_of(handle).pointers = mode;
    });
}
EXPORT int cublasSgemm_v2(void *handle, int op_a, int op_b, int m, int n, int k, const float *alpha, Address a, int lda, Address b,
                          int ldb, const float *beta, Address c, int ldc) {
    if (planted("cublasSgemm_v2", {ARGUMENT(op_a), ARGUMENT(op_b), ARGUMENT(m), ARGUMENT(n), ARGUMENT(k), ARGUMENT(alpha), ARGUMENT(a),
                                   ARGUMENT(lda), ARGUMENT(b), ARGUMENT(ldb), ARGUMENT(beta), ARGUMENT(c), ARGUMENT(ldc)}))
        return SUCCESS;
    return blas_call("cublasSgemm_v2", [&] {
        product("cublasSgemm", handle, op_a, op_b, m, n, k, alpha, {"A", a, 0, 0, lda}, {"B", b, 0, 0, ldb}, beta,
                {"C", c, 0, 0, ldc});
    });
}
EXPORT int cublasGemmEx(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, Address a, int type_a, int lda,
                        Address b, int type_b, int ldb, const void *beta, Address c, int type_c, int ldc, int compute, int) {
    return blas_call("cublasGemmEx", [&] {
        for (int type : {type_a, type_b})
            if (type != R_32F && type != R_16F && type != R_16BF) fail(BLAS_NOT_SUPPORTED, "type %d", type);
        if (type_a != type_b || type_c != R_32F || compute != COMPUTE_32F)
            fail(BLAS_NOT_SUPPORTED, "types %d, %d and %d with arithmetic %d", type_a, type_b, type_c, compute);
        product("cublasGemmEx", handle, op_a, op_b, m, n, k, alpha, {"A", a, 0, 0, lda, type_a}, {"B", b, 0, 0, ldb, type_b}, beta,
                {"C", c, 0, 0, ldc});
    });
}
// B (m x n) <- alpha op(A)^-1 B, or alpha B op(A)^-1
EXPORT int cublasStrsm_v2(void *handle, int side, int uplo, int op, int diagonal, int m, int n, const float *alpha, Address a, int lda,
                          Address b, int ldb) {
    if (planted("cublasStrsm_v2", {ARGUMENT(side), ARGUMENT(uplo), ARGUMENT(op), ARGUMENT(diagonal), ARGUMENT(m), ARGUMENT(n),
                                   ARGUMENT(a), ARGUMENT(lda), ARGUMENT(b), ARGUMENT(ldb)}))
        return SUCCESS;
    return blas_call("cublasStrsm_v2", [&] {
        Blas &blas = blas_of(handle);
        auto transposed = transposition(op);
        if (side > RIGHT || uplo > UPPER || diagonal > UNIT || side < 0 || uplo < 0 || diagonal < 0)
            fail(BLAS_INVALID_VALUE, "side %d, triangle %d, diagonal %d", side, uplo, diagonal);
        int k = side == LEFT ? m : n;
        Matrix triangle = {"A", a, k, k, lda}, right = {"B", b, m, n, ldb};
        triangle.check(BLAS_INVALID_VALUE);
        right.check(BLAS_INVALID_VALUE);
        Scalar by = scalar(blas, alpha);
        count(text("cublasStrsm %dx%d", m, n), double(m) * n * k);
        if (m == 0 || n == 0) return;
        enqueue(stream_of(blas.stream), "cublasStrsm", [=](Stream &on) {
            const float *from = triangle.touched(on, Use::read);
            float *to = right.touched(on, Use::write);
            if (right.overlaps(triangle)) fail(ILLEGAL_ADDRESS, "B overlaps A");
            if (dry()) return;
            cblas_strsm(CblasColMajor, side == LEFT ? CblasLeft : CblasRight, uplo == UPPER ? CblasUpper : CblasLower, transposed,
                        diagonal == UNIT ? CblasUnit : CblasNonUnit, m, n, by.on(on), from, lda, to, ldb);
        });
    });
}

// --- cuSOLVER

EXPORT int cusolverDnCreate(void **handle) {
    return call("cusolverDnCreate", Needs::context, SOLVER_ALLOC_FAILED, SOLVER_EXECUTION_FAILED, [&] {
        take_elsewhere(SOLVER_BYTES, SOLVER_ALLOC_FAILED, "cuSOLVER");
        *handle = new Solver;
        state().live_solvers.insert(*handle);
    });
}
EXPORT int cusolverDnDestroy(void *handle) {
    if (planted("cusolverDnDestroy", {ARGUMENT(handle)})) return SUCCESS;
    State &s = state();
    bool known = s.live_solvers.count(handle);
    int status = solver_call("cusolverDnDestroy", [&] { synchronise(stream_of(solver_of(handle).stream)); });
    if (known) {
        s.live_solvers.erase(handle);
        s.elsewhere -= SOLVER_BYTES;
        delete (Solver *)handle;
    }
    return status;
}
EXPORT int cusolverDnSetStream(void *handle, void *stream) {
    if (planted("cusolverDnSetStream", {ARGUMENT(stream)})) return SUCCESS;
    return solver_call("cusolverDnSetStream", [&] {
        stream_of(stream);
        solver_of(handle).stream = stream;
    });
}

namespace {
// Any number that a caller cannot guess.
int work_size(int n) { return 32 * n + 7; }

Matrix checked(int uplo, int n, Address a, int lda) {
    if (uplo != LOWER && uplo != UPPER) fail(SOLVER_INVALID_VALUE, "triangle %d", uplo);
    Matrix matrix = {"A", a, n, n, lda};
    matrix.check(SOLVER_INVALID_VALUE);
    return matrix;
}
} // namespace

EXPORT int cusolverDnSpotrf_bufferSize(void *handle, int uplo, int n, Address a, int lda, int *size) {
    return solver_call("cusolverDnSpotrf_bufferSize", [&] {
        solver_of(handle);
        checked(uplo, n, a, lda);
        *size = work_size(n);
    });
}
// A = R^T R or L L^T, in its triangle; *info is LAPACK's.
EXPORT int cusolverDnSpotrf(void *handle, int uplo, int n, Address a, int lda, Address work, int size, Address info) {
    if (planted("cusolverDnSpotrf", {ARGUMENT(uplo), ARGUMENT(n), ARGUMENT(a), ARGUMENT(lda), ARGUMENT(work), ARGUMENT(size),
                                     ARGUMENT(info)}))
        return SUCCESS;
    return solver_call("cusolverDnSpotrf", [&] {
        Solver &solver = solver_of(handle);
        Matrix matrix = checked(uplo, n, a, lda);
        if (size < work_size(n)) fail(SOLVER_INVALID_VALUE, "a work space of %d numbers, and %d are needed", size, work_size(n));
        count(text("cusolverDnSpotrf %d", n), double(n) * n * n / 3.0);
        enqueue(stream_of(solver.stream), "cusolverDnSpotrf", [=](Stream &on) {
            void *scratch = touch(on, work, 4 * size_t(size), 4, Use::write, "the work space");
            int *result = (int *)touch(on, info, 4, 4, Use::write, "info");
            float *at = matrix.touched(on, Use::write);
            if (dry()) {
                *result = 0;
                return;
            }
            memset(scratch, 0xff, 4 * size_t(size)); // all of it is the library's
            if (n) spotrf_(uplo == UPPER ? "U" : "L", &n, at, &lda, result, 1);
            else *result = 0;
        });
    });
}
