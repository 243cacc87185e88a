// Group norm, scale and shift, and SiLU in one pass over channels-last memory, forward and backward.
//
// y = act(n (1 + scale) + shift), n = (x - mean) rstd gamma + beta, act(u) = u sigmoid(u) or u.
// x, y and their gradients are (B, N, C) in memory: B examples of N positions of C channels. They, gamma with beta, and
// scales with shifts are float32 or bfloat16 each; all else is float32, and so is the arithmetic. A task is some channels
// of one example, which fit into a core's cache, so memory is read and written once. C is a multiple of 16 and of the
// number of groups.
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define LANES 16
#define ROWS 256  // summed before they are added to the rest, so that rounding does not grow with N
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

typedef struct {
    int64_t batch, positions, channels, groups;
    float eps;
    int silu, bf16, weights_bf16, shifts_bf16, threads;  // which are bfloat16
} sizes;

INLINE floats all(float value) { return value - (floats){0}; }
INLINE floats read(const float *p) { floats v; memcpy(&v, p, sizeof v); return v; }
INLINE void write(float *p, floats v) { memcpy(p, &v, sizeof v); }

INLINE floats limited(floats x, float low, float high) {
#if defined(__AVX512F__)
    return (floats)_mm512_max_ps(_mm512_min_ps((__m512)x, (__m512)all(high)), (__m512)all(low));
#else
    words over = (words)(x > high), under = (words)(x < low);
    return (floats)((over & (words)all(high)) | (under & (words)all(low)) | (~(over | under) & (words)x));
#endif
}

INLINE floats load(const void *data, int64_t i, int bf16) {
    if (!bf16) return read((const float *)data + i);
    halves h;
    memcpy(&h, (const uint16_t *)data + i, sizeof h);
    return (floats)(__builtin_convertvector(h, words) << 16);
}

INLINE void store(void *data, int64_t i, floats v, int bf16) {
    if (!bf16) { write((float *)data + i, v); return; }
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
    words w = (words)v, nan = (words)(v != v);  // to the nearest, ties to even; what is not a number stays so
    w = (nan & 0x7fc00000u) | (~nan & (w + 0x7fffu + ((w >> 16) & 1u)));
    halves h = __builtin_convertvector(w >> 16, halves);
#endif
    memcpy((uint16_t *)data + i, &h, sizeof h);
}

// 1 / (1 + exp(-u)) to some units in the last place: exp by a polynomial between two powers of 2, after Cephes' expf.
INLINE floats sigmoid(floats u) {
    floats x = limited(-u, -87.0f, 87.0f);
    const floats magic = all(12582912.0f);  // 1.5 2^23: adding it rounds to a whole number, in the lowest bits
    floats shifted = x * 1.44269504f + magic, k = shifted - magic;
    floats r = x - k * 0.693359375f + k * 2.12194440e-4f;
    floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    floats d = 1.0f + p * (floats)(((words)shifted + 127u - 0x4b400000u) << 23);
#if defined(__AVX512F__)
    floats i = (floats)_mm512_rcp14_ps((__m512)d);
    return i * (2.0f - d * i);
#else
    return 1.0f / d;
#endif
}

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Channels of a task: whole groups and whole vectors, 64 or some more where they divide C.
static int64_t task_width(int64_t channels, int64_t per_group) {
    int64_t unit = per_group;
    while (unit % LANES) unit += per_group;
    for (int64_t width = unit; width < channels; width += unit)
        if (width >= 64 && channels % width == 0) return width;
    return channels;
}

// Sums over positions of x - first and of its square, for vectors at c, c + LANES ... (at most 4).
INLINE void moments(const void *x, int64_t n, int64_t stride, int vectors, float *sum, float *square, int bf16) {
    floats first[4], s[4], q[4];
    for (int i = 0; i < vectors; i++) first[i] = load(x, LANES * i, bf16), s[i] = q[i] = all(0);
    for (int64_t begin = 0; begin < n; begin += ROWS) {
        floats a[4], b[4];
        for (int i = 0; i < vectors; i++) a[i] = b[i] = all(0);
        for (int64_t row = begin, end = smaller(n, begin + ROWS); row < end; row++)
            for (int i = 0; i < vectors; i++) {
                floats v = load(x, row * stride + LANES * i, bf16) - first[i];
                a[i] += v, b[i] += v * v;
            }
        for (int i = 0; i < vectors; i++) s[i] += a[i], q[i] += b[i];
    }
    for (int i = 0; i < vectors; i++) write(sum + LANES * i, s[i]), write(square + LANES * i, q[i]);
}

INLINE float one(const void *data, int64_t i, int bf16) {
    if (!bf16) return ((const float *)data)[i];
    uint32_t w = (uint32_t)((const uint16_t *)data)[i] << 16;
    float v;
    memcpy(&v, &w, 4);
    return v;
}

INLINE const void *at(const void *data, int64_t i, int bf16) { return (const char *)data + i * (bf16 ? 2 : 4); }

INLINE float grown_by(const sizes *z, const void *scale_shift, int64_t b, int64_t c) {
    return scale_shift ? 1 + one(scale_shift, 2 * b * z->channels + c, z->shifts_bf16) : 1;
}

// Channels [c, c + width) of example b.
INLINE void forward_task(const sizes *z, int64_t b, int64_t c, int64_t width, const void *x, void *y,
                         const void *gamma, const void *beta, const void *scale_shift, float *mean, float *rstd,
                         int bf16, int silu) {
    const int64_t n = z->positions, C = z->channels, D = C / z->groups, start = b * n * C + c;
    float factor[width], offset[width];
    for (int64_t i = 0; i < width; i += 4 * LANES) {
        const void *from = at(x, start + i, bf16);
        if (width - i >= 4 * LANES) moments(from, n, C, 4, factor + i, offset + i, bf16);
        else for (int64_t j = i; j < width; j += LANES) moments(at(x, start + j, bf16), n, C, 1, factor + j, offset + j, bf16);
    }
    for (int64_t k = 0; k < width; k += D) {
        double m = 0, v = 0;
        for (int64_t j = k; j < k + D; j++) m += one(x, start + j, bf16) + (double)factor[j] / n;
        m /= D;
        for (int64_t j = k; j < k + D; j++) {  // about the group's mean, from sums about each channel's first value
            double away = one(x, start + j, bf16) - m;
            v += offset[j] + 2 * away * factor[j] + n * away * away;
        }
        v /= D * n;
        float r = (float)(1 / sqrt((v > 0 || v != v ? v : 0) + z->eps));
        mean[b * z->groups + (c + k) / D] = (float)m, rstd[b * z->groups + (c + k) / D] = r;
        for (int64_t j = k; j < k + D; j++) {
            float f = one(gamma, c + j, z->weights_bf16) * r, o = one(beta, c + j, z->weights_bf16) - (float)m * f;
            if (scale_shift) {
                const float grown = grown_by(z, scale_shift, b, c + j);
                f *= grown, o = o * grown + one(scale_shift, (2 * b + 1) * C + c + j, z->shifts_bf16);
            }
            factor[j] = f, offset[j] = o;
        }
    }
    for (int64_t i = 0; i < width; i += 2 * LANES) {
        const int two = width - i > LANES;
        floats f = read(factor + i), o = read(offset + i), f2 = two ? read(factor + i + LANES) : f, o2 = two ? read(offset + i + LANES) : o;
        for (int64_t row = 0; row < n; row++) {
            const int64_t place = start + row * C + i;
            floats u = load(x, place, bf16) * f + o;
            store(y, place, silu ? u * sigmoid(u) : u, bf16);
            if (two) {
                floats u2 = load(x, place + LANES, bf16) * f2 + o2;
                store(y, place + LANES, silu ? u2 * sigmoid(u2) : u2, bf16);
            }
        }
    }
}

// The gradient of act at u, times that of y.
INLINE floats through(floats dy, floats u, int silu) {
    if (!silu) return dy;
    floats s = sigmoid(u);
    return dy * s * (1.0f + u * (1.0f - s));
}

// With h = (x - mean) rstd and u = a h + e: sums over positions of du and of du h, then
// dx = rstd (a du - mean_group(a du) - h mean_group(a du h)).
INLINE void backward_task(const sizes *z, int64_t b, int64_t c, int64_t width, const void *dy, const void *x,
                          const void *gamma, const void *beta, const void *scale_shift, const float *mean,
                          const float *rstd, void *dx, float *sums, int bf16, int silu) {
    const int64_t n = z->positions, C = z->channels, D = C / z->groups, start = b * n * C + c;
    float a[width], e[width], r[width], m[width], p[width], q[width];
    float *du_sum = sums + b * 2 * C + c, *duh_sum = du_sum + C;
    for (int64_t j = 0; j < width; j++) {
        const int64_t k = b * z->groups + (c + j) / D;
        const float grown = grown_by(z, scale_shift, b, c + j);
        r[j] = rstd[k], m[j] = -mean[k] * rstd[k];
        a[j] = one(gamma, c + j, z->weights_bf16) * grown, e[j] = one(beta, c + j, z->weights_bf16) * grown;
        if (scale_shift) e[j] += one(scale_shift, (2 * b + 1) * C + c + j, z->shifts_bf16);
    }
    for (int64_t i = 0; i < width; i += LANES) {
        floats A = read(a + i), E = read(e + i), R = read(r + i), M = read(m + i), s = all(0), t = all(0);
        for (int64_t begin = 0; begin < n; begin += ROWS) {
            floats s1 = all(0), t1 = all(0);
            for (int64_t row = begin, end = smaller(n, begin + ROWS); row < end; row++) {
                const int64_t place = start + row * C + i;
                floats h = load(x, place, bf16) * R + M, du = through(load(dy, place, bf16), h * A + E, silu);
                s1 += du, t1 += du * h;
            }
            s += s1, t += t1;
        }
        write(du_sum + i, s), write(duh_sum + i, t);
    }
    for (int64_t k = 0; k < width; k += D) {
        double s = 0, t = 0;
        for (int64_t j = k; j < k + D; j++) s += (double)a[j] * du_sum[j], t += (double)a[j] * duh_sum[j];
        for (int64_t j = k; j < k + D; j++) p[j] = r[j] * (float)(s / (D * n)), q[j] = r[j] * (float)(t / (D * n));
    }
    for (int64_t i = 0; i < width; i += LANES) {
        floats A = read(a + i), E = read(e + i), R = read(r + i), M = read(m + i), P = read(p + i), Q = read(q + i), RA = R * A;
        for (int64_t row = 0; row < n; row++) {
            const int64_t place = start + row * C + i;
            floats h = load(x, place, bf16) * R + M, du = through(load(dy, place, bf16), h * A + E, silu);
            store(dx, place, du * RA - (h * Q + P), bf16);
        }
    }
}

// Every pair of an example and a task, with the dtype and the activation as constants.
#define EACH_TASK(TASK, ...)                                                                                         \
    const int64_t width = task_width(z->channels, z->channels / z->groups), tasks = z->channels / width;             \
    _Pragma("omp parallel for num_threads(z->threads) if (z->threads > 1)")                                          \
    for (int64_t i = 0; i < z->batch * tasks; i++) {                                                                 \
        const int64_t b = i / tasks, c = i % tasks * width;                                                          \
        if (z->bf16 && z->silu) TASK(z, b, c, width, __VA_ARGS__, 1, 1);                                             \
        else if (z->bf16) TASK(z, b, c, width, __VA_ARGS__, 1, 0);                                                   \
        else if (z->silu) TASK(z, b, c, width, __VA_ARGS__, 0, 1);                                                   \
        else TASK(z, b, c, width, __VA_ARGS__, 0, 0);                                                                \
    }

void group_norm_forward(const sizes *z, const void *x, void *y, const void *gamma, const void *beta,
                        const void *scale_shift, float *mean, float *rstd) {
    EACH_TASK(forward_task, x, y, gamma, beta, scale_shift, mean, rstd)
}

// sums: (B, 2, C), workspace. The gradients of scales and shifts are as they are, (B, 2, C); null without.
void group_norm_backward(const sizes *z, const void *dy, const void *x, const void *gamma, const void *beta,
                         const void *scale_shift, const float *mean, const float *rstd, float *sums, void *dx,
                         float *dgamma, float *dbeta, float *dscale_shift) {
    EACH_TASK(backward_task, dy, x, gamma, beta, scale_shift, mean, rstd, dx, sums)
    const int64_t C = z->channels;
    memset(dgamma, 0, C * sizeof(float)), memset(dbeta, 0, C * sizeof(float));
    for (int64_t b = 0; b < z->batch; b++) {
        const float *du = sums + b * 2 * C, *duh = du + C;
        for (int64_t c = 0; c < C; c++) {
            const float grown = grown_by(z, scale_shift, b, c);
            dgamma[c] += grown * duh[c], dbeta[c] += grown * du[c];
        }
        if (!dscale_shift) continue;
        for (int64_t c = 0; c < C; c++) {
            dscale_shift[b * 2 * C + c] = one(gamma, c, z->weights_bf16) * duh[c] + one(beta, c, z->weights_bf16) * du[c];
            dscale_shift[b * 2 * C + C + c] = du[c];
        }
    }
}
