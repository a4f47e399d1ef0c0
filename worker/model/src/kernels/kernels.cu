// The element-wise work between the matrix products: each tensor is read once and written once.
//
// NVRTC compiles this at the start of the worker (see mod.rs), so it includes nothing. bfloat16 in and out, float32 inside, one
// rounding at the end. src/nn/fused.rs has the same numbers in operators of libtorch.
//
// Rows are handled by a block each: thread t holds the 8-number packs t, t + threads, ..., at most PACKS of them.

typedef unsigned char u8;
typedef unsigned int u32;
typedef long long i64;

static const int PACKS = 4;

struct Pack {
    float number[8];
};

static __device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
static __device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Rounds to nearest even, as libtorch does.
static __device__ __forceinline__ u32 pair_of(float first, float second) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

static __device__ __forceinline__ Pack unpack(uint4 bits) {
    return {{low(bits.x), high(bits.x), low(bits.y), high(bits.y), low(bits.z), high(bits.z), low(bits.w), high(bits.w)}};
}

static __device__ __forceinline__ uint4 pack(const Pack& of) {
    const float* x = of.number;
    return make_uint4(pair_of(x[0], x[1]), pair_of(x[2], x[3]), pair_of(x[4], x[5]), pair_of(x[6], x[7]));
}

static __device__ __forceinline__ Pack load(const uint4* from) { return unpack(*from); }

// Where there are conversions to 8 bits.
#if __CUDA_ARCH__ >= 890
static __device__ __forceinline__ float largest(const Pack& of) {
    float found = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) found = fmaxf(found, fabsf(of.number[i]));
    return found;
}

static __device__ __forceinline__ u32 e4m3_pair(float first, float second) {
    unsigned short pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
    return pair;
}

static __device__ __forceinline__ uint2 e4m3(const Pack& of, float factor) {
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = of.number[i] * factor;
    return make_uint2(e4m3_pair(x[0], x[1]) | e4m3_pair(x[2], x[3]) << 16,
                      e4m3_pair(x[4], x[5]) | e4m3_pair(x[6], x[7]) << 16);
}
#endif

struct Sum {
    static __device__ __forceinline__ float of(float a, float b) { return a + b; }
};
struct Max {
    static __device__ __forceinline__ float of(float a, float b) { return fmaxf(a, b); }
};

// The same number in every thread of the block. `shared` has room for 32 and may be used again after the next barrier.
template <typename Reduction>
static __device__ __forceinline__ float over_block(float x, float* shared) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        x = Reduction::of(x, __shfl_xor_sync(0xffffffffu, x, distance));
    }
    const int warps = blockDim.x / 32;
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = shared[0];
    for (int warp = 1; warp < warps; ++warp) x = Reduction::of(x, shared[warp]);
    return x;
}

static __device__ __forceinline__ float sum_of_squares(const Pack& of) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += of.number[i] * of.number[i];
    return sum;
}

static __device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

// A row as bfloat16.
struct BFloat16Row {
    uint4* out;
    static __device__ __forceinline__ BFloat16Row at(void* values, float*, i64 row, int packs) {
        return {static_cast<uint4*>(values) + row * packs};
    }
    template <typename Of>
    __device__ __forceinline__ void write(const Of& row, int packs, float*) const {
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            const int at = threadIdx.x + i * blockDim.x;
            if (at < packs) out[at] = pack(row[i]);
        }
    }
};

#if __CUDA_ARCH__ >= 890
// A row as e4m3 with one scale: value = e4m3 * scale.
struct Float8Row {
    uint2* out;
    float* scale;
    static __device__ __forceinline__ Float8Row at(void* values, float* scales, i64 row, int packs) {
        return {static_cast<uint2*>(values) + row * packs, scales + row};
    }
    template <typename Of>
    __device__ __forceinline__ void write(const Of& row, int packs, float* shared) const {
        float found = 0;
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            if (threadIdx.x + i * blockDim.x < packs) found = fmaxf(found, largest(row[i]));
        }
        // As src/nn/float8.rs: a row of zeros keeps a scale that can be divided by.
        const float step = fmaxf(over_block<Max>(found, shared), 1e-12f) / 448.0f;
        const float factor = 1.0f / step;
        if (threadIdx.x == 0) *scale = step;
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            const int at = threadIdx.x + i * blockDim.x;
            if (at < packs) out[at] = e4m3(row[i], factor);
        }
    }
};
#endif

// row *= factor / rms(row)
static __device__ __forceinline__ void norm(Pack (&row)[PACKS], const uint4* factor, int packs, float eps, float* shared) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        if (threadIdx.x + i * blockDim.x < packs) sum += sum_of_squares(row[i]);
    }
    const float inverse = rsqrtf(over_block<Sum>(sum, shared) / (8 * packs) + eps);
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const int at = threadIdx.x + i * blockDim.x;
        if (at < packs) {
            const Pack by = load(factor + at);
#pragma unroll
            for (int j = 0; j < 8; ++j) row[i].number[j] *= inverse * by.number[j];
        }
    }
}

static __device__ __forceinline__ void read(Pack (&row)[PACKS], const uint4* from, int packs) {
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const int at = threadIdx.x + i * blockDim.x;
        if (at < packs) row[i] = load(from + at);
    }
}

// out = x / rms(x) * factor
template <typename Row>
static __device__ __forceinline__ void norm_rows(const uint4* x, const uint4* factor, void* out, float* scales, int packs,
                                                 float eps) {
    __shared__ float shared[2][32];
    const i64 row = blockIdx.x;
    Pack held[PACKS];
    read(held, x + row * packs, packs);
    norm(held, factor, packs, eps, shared[0]);
    Row::at(out, scales, row, packs).write(held, packs, shared[1]);
}

// x += update / rms(update) * update_factor, or x += update without a factor; then out = x / rms(x) * factor, if wanted.
template <typename Row>
static __device__ __forceinline__ void add_norm_rows(uint4* x, const uint4* update, const uint4* update_factor,
                                                     const uint4* factor, void* out, float* scales, int packs, float eps) {
    __shared__ float shared[3][32];
    const i64 row = blockIdx.x;
    Pack held[PACKS];
    uint4 residual[PACKS];
    read(held, update + row * packs, packs);
    uint4* const stream = x + row * packs;
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const int at = threadIdx.x + i * blockDim.x;
        if (at < packs) residual[i] = stream[at];
    }
    if (update_factor != nullptr) norm(held, update_factor, packs, eps, shared[0]);
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const int at = threadIdx.x + i * blockDim.x;
        if (at < packs) {
            const Pack before = unpack(residual[i]);
#pragma unroll
            for (int j = 0; j < 8; ++j) held[i].number[j] += before.number[j];
            const uint4 sum = pack(held[i]);
            stream[at] = sum;
            // The norm is that of what was stored.
            held[i] = unpack(sum);
        }
    }
    if (out == nullptr) return;
    norm(held, factor, packs, eps, shared[1]);
    Row::at(out, scales, row, packs).write(held, packs, shared[2]);
}

// out = silu(gate) * up, where a row of `gate_up` holds the one and then the other.
template <typename Row>
static __device__ __forceinline__ void silu_mul_rows(const uint4* gate_up, void* out, float* scales, int packs) {
    __shared__ float shared[32];
    const i64 row = blockIdx.x;
    const uint4* const gate = gate_up + 2 * row * packs;
    Pack held[PACKS];
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const int at = threadIdx.x + i * blockDim.x;
        if (at < packs) {
            const uint4 gate_bits = gate[at], up_bits = gate[packs + at];
            held[i] = unpack(gate_bits);
            const Pack up = unpack(up_bits);
#pragma unroll
            for (int j = 0; j < 8; ++j) held[i].number[j] = silu(held[i].number[j]) * up.number[j];
        }
    }
    Row::at(out, scales, row, packs).write(held, packs, shared);
}

#define KERNEL extern "C" __global__ void __launch_bounds__(1024)

KERNEL norm_bf16(const uint4* x, const uint4* factor, void* out, float* scales, int packs, float eps) {
    norm_rows<BFloat16Row>(x, factor, out, scales, packs, eps);
}
KERNEL add_norm_bf16(uint4* x, const uint4* update, const uint4* update_factor, const uint4* factor, void* out,
                     float* scales, int packs, float eps) {
    add_norm_rows<BFloat16Row>(x, update, update_factor, factor, out, scales, packs, eps);
}
KERNEL silu_mul_bf16(const uint4* gate_up, void* out, float* scales, int packs) {
    silu_mul_rows<BFloat16Row>(gate_up, out, scales, packs);
}

#if __CUDA_ARCH__ >= 890
KERNEL norm_e4m3(const uint4* x, const uint4* factor, void* out, float* scales, int packs, float eps) {
    norm_rows<Float8Row>(x, factor, out, scales, packs, eps);
}
KERNEL add_norm_e4m3(uint4* x, const uint4* update, const uint4* update_factor, const uint4* factor, void* out,
                     float* scales, int packs, float eps) {
    add_norm_rows<Float8Row>(x, update, update_factor, factor, out, scales, packs, eps);
}
KERNEL silu_mul_e4m3(const uint4* gate_up, void* out, float* scales, int packs) {
    silu_mul_rows<Float8Row>(gate_up, out, scales, packs);
}
KERNEL quantize_e4m3(const uint4* x, void* out, float* scales, int packs) {
    __shared__ float shared[32];
    const i64 row = blockIdx.x;
    Pack held[PACKS];
    read(held, x + row * packs, packs);
    Float8Row::at(out, scales, row, packs).write(held, packs, shared);
}
#endif

// In place: each head of the first `queries + keys` of a row of `qkv` becomes rotate(head / rms(head) * weight). A head is held by
// `lanes` neighbouring threads, 8 numbers each. `rope` has a cosine and a sine for each pair of a token.
// With `halves` a pair is a number of the first half and the one in its place of the second, else two neighbours.
extern "C" __global__ void __launch_bounds__(256)
    norm_rotate_bf16(uint4* qkv, const uint4* weights, const float2* rope, int queries, int keys, int row_packs, int lanes,
                     int halves, float eps) {
    const i64 token = blockIdx.x;
    const int lane = threadIdx.x % lanes;
    const int pairs = 4 * lanes;
    const float2* const turns = rope + token * pairs;
    const Pack query_weight = load(weights + lane), key_weight = load(weights + lanes + lane);
    // Cosine and signed sine for each of this thread's numbers.
    float cosine[8], sine[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const int at = 8 * lane + j;
        const float2 turn = turns[halves ? (at < pairs ? at : at - pairs) : at / 2];
        const bool first = halves ? at < pairs : j % 2 == 0;
        cosine[j] = turn.x;
        sine[j] = first ? -turn.y : turn.y;
    }
    const int heads = queries + keys, stride = blockDim.x / lanes;
    // All threads of a warp stay in the loop together, for the shuffles.
    for (int start = 0; start < heads; start += stride) {
        const int head = start + threadIdx.x / lanes;
        const bool real = head < heads;
        uint4* const at = qkv + token * row_packs + head * lanes + lane;
        Pack x = {};
        if (real) x = load(at);
        float sum = sum_of_squares(x);
        for (int distance = lanes / 2; distance > 0; distance /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        }
        const float inverse = rsqrtf(sum / (8 * lanes) + eps);
        const bool query = head < queries;
#pragma unroll
        for (int j = 0; j < 8; ++j) x.number[j] *= inverse * (query ? query_weight.number[j] : key_weight.number[j]);
        Pack turned;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const float across = __shfl_xor_sync(0xffffffffu, x.number[j], lanes / 2);
            const float other = halves ? across : x.number[j ^ 1];
            turned.number[j] = x.number[j] * cosine[j] + other * sine[j];
        }
        if (real) *at = pack(turned);
    }
}

// Group norm of pictures whose channels lie side by side. First the sums of `pixels_each` pixels by group, as two numbers a
// group; a block has channels / 8 columns of threads, and `rows` of them.
extern "C" __global__ void __launch_bounds__(512)
    group_sums_bf16(const uint4* x, float2* sums, int pixels, int pixels_each, int packs, int groups) {
    extern __shared__ float2 found[];  // [rows][channels]
    const int column = threadIdx.x % packs, row = threadIdx.x / packs, rows = blockDim.x / packs;
    const i64 image = blockIdx.y;
    const int first = blockIdx.x * pixels_each, end = min(first + pixels_each, pixels);
    float sum[8] = {}, squares[8] = {};
    for (int pixel = first + row; pixel < end; pixel += rows) {
        const Pack here = load(x + (image * pixels + pixel) * packs + column);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            sum[j] += here.number[j];
            squares[j] += here.number[j] * here.number[j];
        }
    }
    const int channels = 8 * packs;
#pragma unroll
    for (int j = 0; j < 8; ++j) found[row * channels + 8 * column + j] = make_float2(sum[j], squares[j]);
    __syncthreads();
    const int each = channels / groups;
    for (int group = threadIdx.x; group < groups; group += blockDim.x) {
        float2 all = make_float2(0, 0);
        for (int from = 0; from < rows; ++from) {
            for (int channel = group * each; channel < (group + 1) * each; ++channel) {
                const float2 part = found[from * channels + channel];
                all.x += part.x;
                all.y += part.y;
            }
        }
        sums[(image * gridDim.x + blockIdx.x) * groups + group] = all;
    }
}

// Then mean and 1 / standard deviation of each group, by a warp, from the sums of all `parts`.
extern "C" __global__ void __launch_bounds__(32)
    group_moments(const float2* sums, float2* moments, int parts, int groups, double count, float eps) {
    const i64 image = blockIdx.y;
    const int group = blockIdx.x;
    double sum = 0, squares = 0;
    for (int part = threadIdx.x; part < parts; part += 32) {
        const float2 one = sums[(image * parts + part) * groups + group];
        sum += one.x;
        squares += one.y;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        squares += __shfl_xor_sync(0xffffffffu, squares, distance);
    }
    if (threadIdx.x == 0) {
        const double mean = sum / count;
        const double variance = fmax(squares / count - mean * mean, 0.0);
        moments[image * groups + group] = make_float2(float(mean), rsqrtf(float(variance) + eps));
    }
}

// out = (x - mean) * inverse * weight + bias, through silu where `activate`.
extern "C" __global__ void __launch_bounds__(512)
    group_norm_bf16(const uint4* x, const float2* moments, const uint4* weight, const uint4* bias, uint4* out, int pixels,
                    int pixels_each, int packs, int groups, int activate) {
    const int column = threadIdx.x % packs, row = threadIdx.x / packs, rows = blockDim.x / packs;
    const i64 image = blockIdx.y;
    const int each = 8 * packs / groups;
    const Pack by = load(weight + column), plus = load(bias + column);
    float scale[8], shift[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const float2 moment = moments[image * groups + (8 * column + j) / each];
        scale[j] = moment.y * by.number[j];
        shift[j] = plus.number[j] - moment.x * scale[j];
    }
    const int first = blockIdx.x * pixels_each, end = min(first + pixels_each, pixels);
#pragma unroll 2
    for (int pixel = first + row; pixel < end; pixel += rows) {
        const i64 at = (image * pixels + pixel) * packs + column;
        Pack here = load(x + at);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const float normed = here.number[j] * scale[j] + shift[j];
            here.number[j] = activate ? silu(normed) : normed;
        }
        out[at] = pack(here);
    }
}
