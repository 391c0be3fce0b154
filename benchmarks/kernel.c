// The floor: one policy's whole run stays in one core's cache. Compiled by peer_c.py with -O3 -march=native -fopenmp.
// The max pass of a stable softmax is replaced by the previous step's log-sum-exp, and where the forces sum to zero
// only the drawn actions' logits move, so only those are exponentiated again.
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <xmmintrin.h>
#else
#define _mm_getcsr() 0
#define _mm_setcsr(state) (void)(state)
#endif

enum { FORWARD_KL, REVERSE_KL, RWR, REINFORCE, RLOO, GRPO, BEST_OF_N, PREF_FT, DPO, IPO };
enum { BLOCK = 256, MAX_DRAWS = 64 };

typedef struct {
    int objective, sampled, adam, actions, padded, rows, steps, draws; // padded: actions rounded up to a vector, logits -1e30
    float beta, temperature, eps;
    const float *ref, *reward, *rate, *target;
    const int32_t *order; // actions by increasing reward
} Task;

// Cephes expf, inlined: a call into the vector library spills every register. Below -87 it gives 1.6e-38, not 0.
static inline float fexp(float x) {
    x = fminf(fmaxf(x, -87.0f), 88.0f);
    float k = floorf(x * 1.44269504f + 0.5f), y = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float z = 1.9875691500e-4f;
    z = z * y + 1.3981999507e-3f;
    z = z * y + 8.3334519073e-3f;
    z = z * y + 4.1665795894e-2f;
    z = z * y + 1.6666665459e-1f;
    z = z * y + 5.0000001201e-1f;
    z = z * y * y + y + 1.0f;
    union { int32_t i; float f; } power = {((int32_t)k + 127) << 23};
    return z * power.f;
}

static inline uint64_t splitmix(uint64_t *s) {
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline double uniform(uint64_t *s) { return (splitmix(s) >> 11) * 0x1p-53; }

static inline float slope(const Task *t, float lead) {
    return t->objective == IPO ? 2 * (0.5f / t->beta - lead) : t->beta / (1 + fexp(t->beta * lead));
}

// --- every action enumerated ---------------------------------------------------------------------------------------
// Forces of the objectives that need more than one weighted mean; p sums to 1. Returns their sum.
static float exact_force(const Task *t, const float *restrict x, const float *restrict p, float *restrict f) {
    int K = t->actions;
    const float *r = t->reward, *ref = t->ref;
    if (t->objective == BEST_OF_N) {
        double upto = 0, before = 0;
        for (int i = 0; i < K;) {
            int j = i;
            double mass = 0;
            for (; j < K && r[t->order[j]] == r[t->order[i]]; j++) mass += p[t->order[j]];
            upto += mass;
            double power = pow(upto, t->draws), won = mass > 0 ? (power - before) / mass : 0;
            for (; i < j; i++) f[t->order[i]] = p[t->order[i]] * won;
            before = power;
        }
        return 1;
    }
    // Pairs: in order of reward, an action beats those before it that score less.
    int stride = t->padded;
    float *w = f + stride, *g = f + 2 * stride, *s = f + 3 * stride, *out = f + 4 * stride;
    memset(out, 0, K * sizeof(float));
    for (int i = 0; i < K; i++) w[i] = p[t->order[i]], g[i] = x[t->order[i]] - ref[t->order[i]], s[i] = r[t->order[i]];
    float total = 0;
    for (int i = 0, first = 0; i < K; i++) {
        while (s[first] < s[i]) first++;
        float sum = 0, mass = 0, wi = w[i], gi = g[i];
        for (int j = 0; j < first; j++) {
            float c = wi * w[j];
            mass += c;
            c *= slope(t, gi - g[j]);
            sum += c;
            out[j] -= c;
        }
        out[i] += sum, total += mass;
    }
    for (int i = 0; i < K; i++) f[t->order[i]] = total > 0 ? out[i] / total : 0;
    return 0;
}

static void exact_pairs_row(const Task *t, int row, float *x, float *p, float *f) {
    int K = t->padded;
    memset(f, 0, K * sizeof(float)); // the padding feels no force
    for (int step = 0; step < t->steps; step++) {
        float top = -INFINITY, z = 0;
        for (int a = 0; a < K; a++) top = fmaxf(top, x[a]);
        for (int a = 0; a < K; a++) z += p[a] = fexp(x[a] - top);
        for (int a = 0; a < K; a++) p[a] /= z;
        float sum = exact_force(t, x, p, f);
        for (int a = 0; a < K; a++) x[a] += t->rate[row] * (f[a] - sum * p[a]);
    }
}

// Adam's change of a logit by the direction g, and its moments; `size` and `eps` hold the corrections of the step.
#define ADAM(g, m, v, size, eps) (m = 0.9f * m + 0.1f * (g), v = 0.999f * v + 0.001f * (g) * (g), size * m / (sqrtf(v) + eps))
static void corrections(float rate, int step, float *size, float *eps) {
    double root = sqrt(1 - pow(0.999, step));
    *size = step ? rate * root / (1 - pow(0.9, step)) : 0, *eps = 1e-8 * (step ? root : 1);
}

// One weighted mean is enough: update and exponentiate again in one pass. The actions [lo, hi) are this thread's.
#define PASS(CHANGE, MOMENTS)                                                                                          \
    if (adam)                                                                                                          \
        for (int a = lo; a < hi; a++) {                                                                                \
            float y0 = x[a], g = (CHANGE), y = y0 + ADAM(g, m[a], v[a], size, eps), e = fexp(y - shift);               \
            x[a] = y, p[a] = e, z += e;                                                                                \
            MOMENTS;                                                                                                   \
        }                                                                                                              \
    else                                                                                                               \
        for (int a = lo; a < hi; a++) {                                                                                \
            float y0 = x[a], y = y0 + (CHANGE), e = fexp(y - shift);                                                   \
            x[a] = y, p[a] = e, z += e;                                                                                \
            MOMENTS;                                                                                                   \
        }

static void exact_row(const Task *t, int row, float *restrict x, float *restrict p, float *restrict m,
                      float *restrict v, const float *restrict w, int lo, int hi, float (*shared)[16], int thread,
                      int team) {
    const float *restrict ref = t->ref, *restrict target = t->target, *restrict r = t->reward;
    int adam = t->adam;
    float size, eps, shift = 0, lr = adam ? 1 : t->rate[row], inverse = 1 / t->beta, n = t->draws, mean = 0, scale = 0;
    int name = t->objective;
    for (int step = 0; step <= t->steps; step++) {
        float z = 0, s = 0, q = 0;
        corrections(t->rate[row], step, &size, &eps);
        if (name == FORWARD_KL) {
            float pull = step ? lr : 0;
            PASS(pull * target[a] - scale * p[a], )
        } else if (name == REVERSE_KL) {
            PASS(scale * p[a] * (r[a] * inverse + ref[a] - y0 - mean), s += e * (r[a] * inverse + ref[a] - y))
        } else if (name == GRPO) {
            PASS(scale * p[a] * (w[a] - mean), float ew = e * w[a]; s += ew; q += ew * w[a])
        } else {
            PASS(scale * p[a] * (w[a] - mean), s += e * w[a])
        }
        if (team > 1) {
            shared[thread][0] = z, shared[thread][1] = s, shared[thread][2] = q;
#pragma omp barrier
            z = s = q = 0;
            for (int i = 0; i < team; i++) z += shared[i][0], s += shared[i][1], q += shared[i][2];
#pragma omp barrier
        }
        mean = s / z;
        scale = lr / z;
        if (name == GRPO) scale *= (n - 1) / n / (sqrtf(fmaxf(q / z - mean * mean, 0)) + t->eps);
        // Probabilities relative to the old shift stay valid: the next exponentials take the new one.
        shift += logf(z);
    }
}

// --- drawn actions -------------------------------------------------------------------------------------------------
static float draw_force(const Task *t, const int *action, const float *x, float *f) {
    int n = t->draws, name = t->objective;
    float r[MAX_DRAWS], d[MAX_DRAWS], mean = 0, square = 0, sum = 0;
    for (int i = 0; i < n; i++) mean += r[i] = t->reward[action[i]];
    mean /= n;
    switch (name) {
    case RWR:
        for (int i = 0; i < n; i++) sum += f[i] = fexp(r[i] / t->temperature) / n;
        return sum;
    case REINFORCE:
        for (int i = 0; i < n; i++) sum += f[i] = r[i] / n;
        return sum;
    case RLOO:
        for (int i = 0; i < n; i++) f[i] = (r[i] - mean) / (n - 1);
        return 0;
    case GRPO:
        for (int i = 0; i < n; i++) square += (r[i] - mean) * (r[i] - mean);
        square = 1 / ((sqrtf(square / (n - 1)) + t->eps) * n);
        for (int i = 0; i < n; i++) f[i] = (r[i] - mean) * square;
        return 0;
    case BEST_OF_N: {
        int best = 0;
        for (int i = 0; i < n; i++) f[i] = 0, best = r[i] > r[best] ? i : best;
        f[best] = 1;
        return 1;
    }
    default:
        for (int i = 0; i < n; i++) f[i] = 0, d[i] = x[action[i]] - t->ref[action[i]];
        float kept = 0;
        if (name == DPO) // sigmoid(-beta (d_i - d_j)) = e_j / (e_i + e_j)
            for (int i = 0; i < n; i++) d[i] = fexp(t->beta * d[i]);
        for (int i = 0; i < n; i++) {
            float win = 0, force = 0, ri = r[i], di = d[i];
            if (name == PREF_FT)
                for (int j = 0; j < n; j++) win += ri > r[j];
            else if (name == DPO)
                for (int j = 0; j < n; j++) {
                    win += ri > r[j];
                    force += ((ri > r[j] ? d[j] : 0) - (r[j] > ri ? di : 0)) / (di + d[j]);
                }
            else
                for (int j = 0; j < n; j++) {
                    float gap = di - d[j], target = 0.5f / t->beta;
                    win += ri > r[j];
                    force += (ri > r[j] ? target - gap : 0) - (r[j] > ri ? target + gap : 0);
                }
            f[i] = name == PREF_FT ? win : name == DPO ? t->beta * force : 2 * force;
            kept += win;
        }
        for (int i = 0; i < n; i++) f[i] = kept > 0 ? f[i] / kept : 0;
        return name == PREF_FT && kept > 0;
    }
}

// Block sums and the sum of all.
static double refresh(int K, float shift, const float *restrict x, float *restrict p, float *restrict block) {
    double total = 0;
    for (int b = 0, lo = 0; lo < K; b++, lo += BLOCK) {
        int hi = lo + BLOCK < K ? lo + BLOCK : K;
        float s = 0;
        for (int a = lo; a < hi; a++) s += p[a] = fexp(x[a] - shift);
        total += block[b] = s;
    }
    return total;
}

static void sampled_row(const Task *t, int row, uint64_t seed, float *x, float *p, float *block) {
    int K = t->actions, n = t->draws, blocks = (t->padded + BLOCK - 1) / BLOCK, name = t->objective;
    int zero_sum = name == RLOO || name == GRPO || name == DPO || name == IPO;
    uint64_t state = seed * 0x2545f4914f6cdd1du + row;
    splitmix(&state);
    float shift = 0, lr = t->rate[row], f[MAX_DRAWS], upto[BLOCK];
    int P = t->padded;
    double z = refresh(P, 0, x, p, block), cumulated[blocks];
    for (int step = 0; step < t->steps; step++) {
        int action[MAX_DRAWS];
        double total = 0;
        for (int b = 0; b < blocks; b++) cumulated[b] = total += block[b];
        z = total;
        if (blocks == 1) {
            float sum = 0;
            for (int a = 0; a < P; a++) upto[a] = sum += p[a];
            for (int i = 0; i < n; i++) {
                float u = (float)(uniform(&state)) * sum;
                int below = 0;
                for (int a = 0; a < P; a++) below += upto[a] <= u;
                action[i] = below < K ? below : K - 1;
            }
        } else
            for (int i = 0; i < n; i++) {
                double u = uniform(&state) * total;
                int lo = 0, hi = blocks - 1;
                while (lo < hi) {
                    int mid = (lo + hi) / 2;
                    if (cumulated[mid] <= u) lo = mid + 1;
                    else hi = mid;
                }
                int a = lo * BLOCK, end = a + BLOCK < K ? a + BLOCK : K;
                float v = (float)uniform(&state) * block[lo]; // a fresh uniform: no bits are left in the first
                for (; a < end - 1 && v >= p[a]; a++) v -= p[a];
                action[i] = a;
            }
        float sum = draw_force(t, action, x, f);
        if (zero_sum && blocks > 1) {
            int redo = 0;
            for (int i = 0; i < n; i++) {
                float y = x[action[i]] += lr * f[i];
                redo |= y - shift > 60;
            }
            shift = redo ? shift + logf(z) : shift;
            for (int i = 0; i < n; i++) {
                int a = action[i], b = a / BLOCK, lo = b * BLOCK, hi = lo + BLOCK < P ? lo + BLOCK : P;
                p[a] = fexp(x[a] - shift);
                float s = 0;
                for (int k = lo; k < hi; k++) s += p[k];
                block[b] = s;
            }
            if (redo) {
                float top = -INFINITY;
                for (int a = 0; a < K; a++) top = fmaxf(top, x[a]);
                refresh(P, shift = top, x, p, block);
            }
        } else {
            float dense = lr * sum / z;
            if (!zero_sum)
                for (int a = 0; a < P; a++) x[a] -= dense * p[a];
            for (int i = 0; i < n; i++) x[action[i]] += lr * f[i];
            shift += logf(z);
            refresh(P, shift, x, p, block);
        }
    }
}

// --- all rows ------------------------------------------------------------------------------------------------------
void run(const Task *t, uint64_t seed, float *out) {
    int K = t->padded, threads = omp_get_max_threads(), alone = t->rows >= threads || t->sampled;
    int weighted = t->objective == RWR || t->objective == REINFORCE || t->objective == GRPO;
    int simple = weighted || t->objective == FORWARD_KL || t->objective == REVERSE_KL;
    int copies = alone ? threads : 1;
    size_t stride = 7 * (size_t)K + 1024;
    float *space = aligned_alloc(64, (stride * copies * sizeof(float) + 63) / 64 * 64);
    float *w = malloc(K * sizeof(float));
    for (int a = 0; a < K; a++)
        w[a] = t->objective == RWR ? fexp(t->reward[a] / t->temperature) : weighted ? t->reward[a] : 0;
    float (*shared)[16] = malloc(threads * sizeof *shared);
#pragma omp parallel
    {
        unsigned rounding = _mm_getcsr();
        _mm_setcsr(rounding | 0x8040); // subnormal numbers are 0, as in XLA's programs
        int me = omp_get_thread_num(), team = alone ? 1 : omp_get_num_threads();
        float *x = space + (alone ? me : 0) * stride, *p = x + K, *f = p + K;
        int lo = alone ? 0 : (int)((int64_t)K / 16 * me / team) * 16, hi = alone ? K : (int)((int64_t)K / 16 * (me + 1) / team) * 16;
        for (int row = alone ? me : 0; row < t->rows; row += alone ? omp_get_num_threads() : 1) {
            memcpy(x + lo, t->ref + lo, (hi - lo) * sizeof(float));
            for (int i = 0; i < 3; i++) memset(p + i * (size_t)K + lo, 0, (hi - lo) * sizeof(float));
            if (t->sampled) sampled_row(t, row, seed, x, p, f);
            else if (simple) exact_row(t, row, x, p, f, f + K, w, lo, hi, shared, me, team);
            else exact_pairs_row(t, row, x, p, f);
            if (!alone) {
#pragma omp barrier
            }
            if (alone || me == 0) {
                float top = -INFINITY;
                double z = 0, s = 0;
                for (int a = 0; a < K; a++) top = fmaxf(top, x[a]);
                for (int a = 0; a < K; a++) {
                    float e = fexp(x[a] - top);
                    z += e, s += e * t->reward[a];
                }
                out[row] = s / z;
            }
            if (!alone) {
#pragma omp barrier
            }
        }
        _mm_setcsr(rounding);
    }
    free(space), free(w), free(shared);
}

// --- what the machine can do ---------------------------------------------------------------------------------------
int threads(void) { return omp_get_max_threads(); }

// Seconds of one pass a = b + s * c over arrays of n floats.
double triad(int n, float *a, const float *b, const float *c) {
    double start = omp_get_wtime();
#pragma omp parallel for schedule(static)
    for (int i = 0; i < n; i++) a[i] = b[i] + 0.5f * c[i];
    return omp_get_wtime() - start;
}

// Seconds per pass, over `count` passes of every thread at once: a copy of n floats in memory of the thread's own, or
// the exponentials or Adam's changes of n numbers in its cache.
enum { COPY, EXPONENTIALS, CHANGES };
double passes(int kind, int n, int count) {
    double seconds = 0;
    float sink = 0;
#pragma omp parallel reduction(max : seconds) reduction(+ : sink)
    {
        unsigned rounding = _mm_getcsr();
        _mm_setcsr(rounding | 0x8040);
        int room = kind == COPY ? n : 4 * n;
        float *from = malloc(room * sizeof(float)), *to = malloc(room * sizeof(float));
        for (int i = 0; i < room; i++) from[i] = -1e-3f * (i % 4096), to[i] = 0;
        float *restrict g = from, *restrict x = to, *restrict m = to + n, *restrict v = to + 2 * (size_t)n;
#pragma omp barrier
        double start = omp_get_wtime();
        for (int k = 0; k < count; k++) {
            float add = 1e-6f * k;
            if (kind == COPY) memcpy(to, from, n * sizeof(float));
            else if (kind == EXPONENTIALS)
                for (int i = 0; i < n; i++) sink += fexp(g[i] + add);
            else
                for (int i = 0; i < n; i++) x[i] += ADAM(g[i], m[i], v[i], add, 1e-8f);
            __asm__ volatile("" : : "r"(to), "r"(from) : "memory"); // every pass is made
        }
        seconds = omp_get_wtime() - start;
        sink += to[n / 2];
        free(from), free(to);
        _mm_setcsr(rounding);
    }
    return sink == 12345 ? 0 : seconds / count;
}
