// GPT-2 over a few tokens at once, on a CPU: the same arithmetic as gpt2/model/gpt2.py, as one function.
//
// With few tokens the time goes into reading the weights from memory, so each weight is read once, all tokens of the
// batch pass by it, and nothing runs between two matrices but the numbers in between. A number's sum is always added
// up in the same order: what a text says does not depend, not even in the last bit, on which texts are read beside it.
//
// Matrices lie as PyTorch has them, (outputs, inputs). Inputs are multiples of 64, head sizes of 16.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, TOKENS = 4;  // 4 rows by 4 tokens: 16 sums in 32 registers
#else
constexpr int LANES = 8, TOKENS = 2;
#endif
constexpr int ROWS = 4;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint16_t bfloat16;  // the upper half of a float

template <class V, class T> inline V raw(const T* from) { V v; std::memcpy(&v, from, sizeof v); return v; }
inline Floats load(const float* from) { return raw<Floats>(from); }
inline Floats load(const bfloat16* from) { return (Floats)(__builtin_convertvector(raw<Halves>(from), Ints) << 16); }
inline void store(float* to, Floats v) { std::memcpy(to, &v, sizeof v); }
inline float total(Floats v) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)v);
#else
  float sum = 0;
  for (int half = LANES / 2; half > 1; half /= 2)
    for (int i = 0; i < half; i++) v[i] += v[i + half];
  return sum + v[0] + v[1];
#endif
}
inline float widen(float x) { return x; }
inline float widen(bfloat16 x) { uint32_t bits = uint32_t(x) << 16; float y; std::memcpy(&y, &bits, 4); return y; }
inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, bfloat16* to) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *to = bfloat16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// e to the x, to 2e-7 (Cody and Waite's reduction, a polynomial of degree 6 for the rest).
inline Floats exponential(Floats x) {
  x = x < -87.0f ? x - x - 87.0f : x;
  x = x > 88.0f ? x - x + 88.0f : x;
  const Floats shifter = x - x + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  Floats n = (x * 1.44269504f + shifter) - shifter;
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = ((((1.9875691e-4f * r + 1.3981999e-3f) * r + 8.3334519e-3f) * r + 4.1665796e-2f) * r + 0.16666665f) * r + 0.5f;
  p = p * r * r + r + 1.0f;
  return p * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
}

// Memory is fastest in order: what lies this far ahead is asked for, or, where rows are read side by side, what lies at
// the same place of the next rows, in the order of memory.
constexpr int AHEAD = 8192;  // bytes
template <int R, class W> inline void ask_ahead(const W* w, int size, int k) {
  const char* from = (const char*)(w + R * k) + (R == 1 ? AHEAD : sizeof(W) * R * size);
  for (int r = 0; r < R; r++) __builtin_prefetch(from + 64 * r);
}

// Precisions: how weights are stored, what a token's numbers become before they meet them, and sums of products.

struct Fp32 {
  using Weight = float;
  using Input = float;
  static float prepare(const float* x, Input* to, int size) { std::memcpy(to, x, sizeof(float) * size); return 1; }
  template <int R, int T> static void dots(const Weight* w, const Input* x, int size, float sums[R][T]) {
    Floats acc[R][T] = {};
    for (int k = 0; k < size; k += LANES) {
      Floats a[R];
      for (int r = 0; r < R; r++) a[r] = load(w + r * size + k);
      ask_ahead<R>(w, size, k);
      for (int t = 0; t < T; t++) {
        Floats b = load(x + t * size + k);
        for (int r = 0; r < R; r++) acc[r][t] += a[r] * b;
      }
    }
    for (int r = 0; r < R; r++) for (int t = 0; t < T; t++) sums[r][t] = total(acc[r][t]);
  }
  static float finish(float sum, const float*, const float*, int, float) { return sum; }
  static float at(const Weight* w, const float*, int row, int size, int k) { return w[int64_t(row) * size + k]; }
};

struct Bf16 {
  using Weight = bfloat16;
#ifdef __AVX512BF16__
  using Input = bfloat16;
#else
  using Input = float;
#endif
  static float prepare(const float* x, Input* to, int size) {
    for (int k = 0; k < size; k++) narrow(x[k], to + k);
    return 1;
  }
  template <int R, int T> static void dots(const Weight* w, const Input* x, int size, float sums[R][T]) {
    Floats acc[R][T] = {};
#ifdef __AVX512BF16__
    for (int k = 0; k < size; k += 32) {
      __m512bh a[R];
      for (int r = 0; r < R; r++) a[r] = raw<__m512bh>(w + r * size + k);
      ask_ahead<R>(w, size, k);
      for (int t = 0; t < T; t++) {
        __m512bh b = raw<__m512bh>(x + t * size + k);
        for (int r = 0; r < R; r++) acc[r][t] = (Floats)_mm512_dpbf16_ps((__m512)acc[r][t], a[r], b);
      }
    }
#else
    for (int k = 0; k < size; k += LANES)
      for (int r = 0; r < R; r++) {
        Floats a = load(w + r * size + k);
        for (int t = 0; t < T; t++) acc[r][t] += a * load(x + t * size + k);
      }
#endif
    for (int r = 0; r < R; r++) for (int t = 0; t < T; t++) sums[r][t] = total(acc[r][t]);
  }
  static float finish(float sum, const float*, const float*, int, float) { return sum; }
  static float at(const Weight* w, const float*, int row, int size, int k) { return widen(w[int64_t(row) * size + k]); }
};

struct Int8 {  // weights have a scale a row, inputs a scale a token
  using Weight = int8_t;
  using Input = uint8_t;  // 128 too large, as the instruction wants it; `finish` takes that off again
  static float prepare(const float* x, Input* to, int size) {
    float largest = 0;
#pragma omp simd reduction(max : largest)
    for (int k = 0; k < size; k++) largest = std::max(largest, std::fabs(x[k]));
    float scale = std::max(largest, 1e-20f) / 127, inverse = 1 / scale;
#pragma omp simd
    for (int k = 0; k < size; k++) to[k] = uint8_t(int32_t(x[k] * inverse + 12582912.0f - 12582912.0f) + 128);
    return scale;
  }
  template <int R, int T> static void dots(const Weight* w, const Input* x, int size, float sums[R][T]) {
#ifdef __AVX512VNNI__
    __m512i acc[R][T];
    for (int r = 0; r < R; r++) for (int t = 0; t < T; t++) acc[r][t] = _mm512_setzero_si512();
    for (int k = 0; k < size; k += 64) {
      __m512i a[R];
      for (int r = 0; r < R; r++) a[r] = raw<__m512i>(w + r * size + k);
      ask_ahead<R>(w, size, k);
      for (int t = 0; t < T; t++) {
        __m512i b = raw<__m512i>(x + t * size + k);
        for (int r = 0; r < R; r++) acc[r][t] = _mm512_dpbusd_epi32(acc[r][t], b, a[r]);
      }
    }
    for (int r = 0; r < R; r++) for (int t = 0; t < T; t++) sums[r][t] = _mm512_reduce_add_epi32(acc[r][t]);
#else
    for (int r = 0; r < R; r++)
      for (int t = 0; t < T; t++) {
        int32_t sum = 0;
        for (int k = 0; k < size; k++) sum += int32_t(w[r * size + k]) * x[t * size + k];
        sums[r][t] = sum;
      }
#endif
  }
  static float finish(float sum, const float* scales, const float* row_sums, int row, float scale) {
    return (sum - 128 * row_sums[row]) * scales[row] * scale;
  }
  static float at(const Weight* w, const float* scales, int row, int size, int k) {
    return w[int64_t(row) * size + k] * scales[row];
  }
};

struct Matrix { const void* weight; const float *scales, *row_sums, *bias; };
struct Norm { const float *weight, *bias; };
struct Block { Norm ln_1; Matrix attention, attention_out; Norm ln_2; Matrix up, down; };

struct Model {  // as native.py fills it
  int32_t layers, heads, width, vocabulary, rows, capacity, threads, unused;
  Matrix wte;
  const float* wpe;
  Norm ln_f;
  void *keys, *values;  // (layers, rows, heads, capacity, width / heads)
  const Block* blocks;
};

template <class P, int R, int T, class Sink>
inline void tile(const Matrix& m, const typename P::Input* in, const float* scales, int size, int row, int token, Sink sink) {
  float sums[R][T];
  P::template dots<R, T>((const typename P::Weight*)m.weight + int64_t(row) * size, in + int64_t(token) * size, size, sums);
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) {
      float bias = m.bias ? m.bias[row + r] : 0;
      sink(token + t, row + r, P::finish(sums[r][t], m.scales, m.row_sums, row + r, scales[token + t]) + bias);
    }
}

template <class P, int R, class Sink>
inline void tiles(const Matrix& m, const typename P::Input* in, const float* scales, int n, int size, int row, Sink sink) {
  int token = 0;
  for (; token + TOKENS <= n; token += TOKENS) tile<P, R, TOKENS>(m, in, scales, size, row, token, sink);
  for (; token < n; token++) tile<P, R, 1>(m, in, scales, size, row, token, sink);
}

// sink(token, row, number) for each number of W x + b; the threads share the rows, and wait for each other at the end.
// A single token takes rows one by one, as memory has them: in fours, weights of 8 bits come at half of the speed.
template <class P, class Sink>
void multiply(const Matrix& m, const typename P::Input* in, const float* scales, int n, int rows, int size, Sink sink) {
  if (n == 1) {
#pragma omp for schedule(static)
    for (int row = 0; row < rows; row++) tile<P, 1, 1>(m, in, scales, size, row, 0, sink);
    return;
  }
#pragma omp for schedule(static)
  for (int block = 0; block < (rows + ROWS - 1) / ROWS; block++) {
    int row = block * ROWS;
    if (row + ROWS <= rows) tiles<P, ROWS>(m, in, scales, n, size, row, sink);
    else for (; row < rows; row++) tiles<P, 1>(m, in, scales, n, size, row, sink);
  }
}

void normalize(const float* x, const Norm& norm, int size, float* to) {
  float mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
  for (int k = 0; k < size; k++) mean += x[k];
  mean /= size;
#pragma omp simd reduction(+ : variance)
  for (int k = 0; k < size; k++) variance += (x[k] - mean) * (x[k] - mean);
  float inverse = 1 / std::sqrt(variance / size + 1e-5f);
  for (int k = 0; k < size; k++) to[k] = (x[k] - mean) * inverse * norm.weight[k] + norm.bias[k];
}

void gelu(float* x, int size) {  // the tanh form: 0.5 (1 + tanh u) is 1 / (1 + exp(-2u))
  for (int k = 0; k < size; k += LANES) {
    Floats v = load(x + k);
    store(x + k, v / (1.0f + exponential(-1.59576912f * (v + 0.044715f * v * v * v))));
  }
}

// The mean of `seen` values by their scores, N registers of each; a sum alone would wait for itself at every value.
template <int N, class Stored>
inline void weigh(const Stored* values, int seen, int size, const float* scores, float inverse, float* to) {
  Floats sums[N] = {};
  for (int s = 0; s < seen; s++)
    for (int i = 0; i < N; i++) sums[i] += scores[s] * load(values + int64_t(s) * size + i * LANES);
  for (int i = 0; i < N; i++) store(to + i * LANES, sums[i] * inverse);
}

// One head of one token: softmax(q K / sqrt(size)) V over `seen` tokens. Called with room for as many scores.
template <class Stored>
void attend(const float* q, const Stored* keys, const Stored* values, int seen, int size, float* scores, float* to) {
  float largest = -INFINITY, scale = 1 / std::sqrt(float(size));
  for (int s = 0; s < seen; s++) {
    Floats sum = {};
    for (int d = 0; d < size; d += LANES) sum += load(q + d) * load(keys + int64_t(s) * size + d);
    scores[s] = total(sum) * scale;
    largest = std::max(largest, scores[s]);
  }
  Floats sums = {};
  for (int s = seen; s % LANES; s++) scores[s] = -INFINITY;
  for (int s = 0; s < seen; s += LANES) {
    Floats p = exponential(load(scores + s) - largest);
    store(scores + s, p);
    for (int i = 0; i < LANES; i++) sums[i] += s + i < seen ? p[i] : 0;
  }
  float inverse = 1 / total(sums);
  int d = 0;
  for (; d + 4 * LANES <= size; d += 4 * LANES) weigh<4>(values + d, seen, size, scores, inverse, to + d);
  for (; d < size; d += LANES) weigh<1>(values + d, seen, size, scores, inverse, to + d);
}

template <class P, class Stored>
void read(const Model& m, const int32_t* ids, const int32_t* rows, const int32_t* positions, int n,
          const int32_t* wanted, int n_wanted, float* logits) {
  const int width = m.width, size = width / m.heads;
  std::vector<float> x(n * width), y(n * width), q(n * width), hidden(n * 4 * width), scales(n);
  std::vector<typename P::Input> in(n * 4 * width);
  auto place = [&](int layer, int token, int channel) {  // of a number in the cache
    int64_t row = (int64_t(layer) * m.rows + rows[token]) * m.heads + channel / size;
    return (row * m.capacity + positions[token]) * size + channel % size;
  };
  Stored *keys = (Stored*)m.keys, *values = (Stored*)m.values;

#pragma omp parallel num_threads(m.threads)
  {
    std::vector<float> scores(m.capacity + LANES);
#pragma omp for schedule(static)
    for (int t = 0; t < n; t++)
      for (int k = 0; k < width; k++)
        x[t * width + k] = P::at((const typename P::Weight*)m.wte.weight, m.wte.scales, ids[t], width, k) +
                           m.wpe[int64_t(positions[t]) * width + k];
    auto prepare_norm = [&](const Norm& norm) {
#pragma omp for schedule(static)
      for (int t = 0; t < n; t++) {
        normalize(&x[t * width], norm, width, &y[t * width]);
        scales[t] = P::prepare(&y[t * width], &in[t * width], width);
      }
    };
    auto add = [&](int t, int channel, float number) { x[t * width + channel] += number; };

    for (int layer = 0; layer < m.layers; layer++) {
      const Block& block = m.blocks[layer];
      prepare_norm(block.ln_1);
      multiply<P>(block.attention, in.data(), scales.data(), n, 3 * width, width, [&](int t, int channel, float number) {
        if (channel < width) q[t * width + channel] = number;
        else if (channel < 2 * width) narrow(number, keys + place(layer, t, channel - width));
        else narrow(number, values + place(layer, t, channel - 2 * width));
      });
#pragma omp for schedule(dynamic) collapse(2)
      for (int t = 0; t < n; t++)
        for (int head = 0; head < m.heads; head++) {
          int64_t first = place(layer, t, head * size) - int64_t(positions[t]) * size;
          float* to = &y[t * width + head * size];
          attend(&q[t * width + head * size], keys + first, values + first, positions[t] + 1, size, scores.data(), to);
        }
#pragma omp for schedule(static)
      for (int t = 0; t < n; t++) scales[t] = P::prepare(&y[t * width], &in[t * width], width);
      multiply<P>(block.attention_out, in.data(), scales.data(), n, width, width, add);

      prepare_norm(block.ln_2);
      multiply<P>(block.up, in.data(), scales.data(), n, 4 * width, width,
                  [&](int t, int channel, float number) { hidden[t * 4 * width + channel] = number; });
#pragma omp for schedule(static)
      for (int t = 0; t < n; t++) {
        gelu(&hidden[t * 4 * width], 4 * width);
        scales[t] = P::prepare(&hidden[t * 4 * width], &in[t * 4 * width], 4 * width);
      }
      multiply<P>(block.down, in.data(), scales.data(), n, width, 4 * width, add);
    }
#pragma omp for schedule(static)
    for (int i = 0; i < n_wanted; i++) {
      normalize(&x[wanted[i] * width], m.ln_f, width, &y[i * width]);
      scales[i] = P::prepare(&y[i * width], &in[i * width], width);
    }
    multiply<P>(m.wte, in.data(), scales.data(), n_wanted, m.vocabulary, width,
                [&](int t, int id, float number) { logits[int64_t(t) * m.vocabulary + id] = number; });
  }
}

}  // namespace

// Read n tokens: ids, their rows of the cache, their positions in it. Logits, shape (n_wanted, vocabulary), are those
// of what follows the wanted tokens. Tokens of one row may stand together in one call, in order.
extern "C" void read_tokens(const Model* m, int precision, const int32_t* ids, const int32_t* rows,
                            const int32_t* positions, int n, const int32_t* wanted, int n_wanted, float* logits) {
  if (precision == 0) read<Fp32, float>(*m, ids, rows, positions, n, wanted, n_wanted, logits);
  if (precision == 1) read<Bf16, bfloat16>(*m, ids, rows, positions, n, wanted, n_wanted, logits);
  if (precision == 2) read<Int8, bfloat16>(*m, ids, rows, positions, n, wanted, n_wanted, logits);
}
