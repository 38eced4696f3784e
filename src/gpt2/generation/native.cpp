// GPT-2 over some tokens at once, on a CPU: the same arithmetic as gpt2/model/gpt2.py, as one function.
//
// With few tokens the time goes into reading the weights from memory, so each weight is read once, all tokens of the
// batch pass by it, and nothing runs between two matrices but the numbers in between. With many it goes into products,
// of which a tile of rows and tokens makes the most of what it has read. A number's sum is always added up in the same
// order: what a text says does not depend, not even in the last bit, on which texts are read beside it, nor on how many
// tokens of it are read at once.
//
// Matrices lie as PyTorch has them, (outputs, inputs). Inputs are multiples of 64, head sizes of 16.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, WIDEST = 6;  // tokens of a tile: 4 rows by 6 of them are 24 sums, and there are 32 registers
#else
constexpr int LANES = 8, WIDEST = 2;
#endif
#ifdef __AVX512FP16__
constexpr bool INTEL = true;  // its processors since Sapphire Rapids, and none of AMD's so far
#else
constexpr bool INTEL = false;
#endif
constexpr int ROWS = 4;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint16_t bfloat16;  // the upper half of a float
#ifdef __AVX512FP16__
typedef _Float16 float16;
#endif

template <class V, class T> inline V raw(const T* from) { V v; std::memcpy(&v, from, sizeof v); return v; }
inline Floats load(const float* from) { return raw<Floats>(from); }
inline Floats load(const bfloat16* from) {
#ifdef __AVX512F__  // one instruction, which GCC spells as seven: attention took 1.9 times as long in the nearest cache
  return (Floats)((Ints)_mm512_cvtepu16_epi32(raw<__m256i>(from)) << 16);
#else
  return (Floats)(__builtin_convertvector(raw<Halves>(from), Ints) << 16);
#endif
}
#ifdef __AVX512FP16__
inline Floats load(const float16* from) { return (Floats)_mm512_cvtxph_ps(raw<__m256h>(from)); }
#endif
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
// A value that stays in its register, for as many products as R. GCC would rather read it from memory for each, which
// takes as long as the product: 4 x 4 tiles do 200 GFLOP/s in fp32 with it, 145 without, 700 and 450 in int8. With the
// instructions for bf16 it is the other way round, 390 and 435.
template <int R = 4, class V> inline V held(V v) {
#ifdef __AVX512F__
  if constexpr (R > 1) asm("" : "+v"(v));
#endif
  return v;
}
#ifdef __AVX512F__
inline __m512 bits(__m512 v) { return v; }
inline __m512 bits(__m512i v) { return _mm512_castsi512_ps(v); }
inline void unbits(__m512 v, __m512& to) { to = v; }
inline void unbits(__m512 v, __m512i& to) { to = _mm512_castps_si512(v); }
inline __m512 plus(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
inline __m512i plus(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
#ifdef __AVX512FP16__
inline __m512 bits(__m512h v) { return (__m512)v; }
inline void unbits(__m512 v, __m512h& to) { to = (__m512h)v; }
inline __m512h plus(__m512h a, __m512h b) { return _mm512_add_ph(a, b); }
#endif
// Of 16 vectors, what remains when each has been halved three times: its first half and its second added up, then those
// of that, in 32 bits and in 16. Every instruction of it works for two.
template <class V> inline void halve(const V* v, V (&halves)[2]) {
  V eighths[8], quarters[4], a, b;
  for (int i = 0; i < 8; i++) {
    unbits(_mm512_shuffle_f32x4(bits(v[2 * i]), bits(v[2 * i + 1]), 0x44), a);
    unbits(_mm512_shuffle_f32x4(bits(v[2 * i]), bits(v[2 * i + 1]), 0xEE), b);
    eighths[i] = plus(a, b);
  }
  for (int i = 0; i < 4; i++) {
    unbits(_mm512_shuffle_f32x4(bits(eighths[2 * i]), bits(eighths[2 * i + 1]), 0x88), a);
    unbits(_mm512_shuffle_f32x4(bits(eighths[2 * i]), bits(eighths[2 * i + 1]), 0xDD), b);
    quarters[i] = plus(a, b);
  }
  for (int i = 0; i < 2; i++) {
    __m512d p = _mm512_castps_pd(bits(quarters[2 * i])), q = _mm512_castps_pd(bits(quarters[2 * i + 1]));
    unbits(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), a);
    unbits(_mm512_castpd_ps(_mm512_unpackhi_pd(p, q)), b);
    halves[i] = plus(a, b);
  }
}
// The sums of 16 vectors as one: number 4 t + r is the sum of vector 4 r + t. Each is added up in the order of `total`,
// in a third of its instructions.
template <class V> inline V fold(const V* v) {
  V halves[2], a, b;
  halve(v, halves);
  unbits(_mm512_shuffle_ps(bits(halves[0]), bits(halves[1]), 0x88), a);
  unbits(_mm512_shuffle_ps(bits(halves[0]), bits(halves[1]), 0xDD), b);
  return plus(a, b);
}
inline float total(__m512i v) { return _mm512_reduce_add_epi32(v); }
inline void store(float* to, __m512i v) { store(to, (Floats)_mm512_cvtepi32_ps(v)); }
#endif
#ifdef __AVX512FP16__
// The same, the last two of five halvings in 32 bits. Widened, a register becomes two: hence another order of vectors.
inline Floats fold(const __m512h* v) {
  __m512h turned[16], halves[2];
  for (int i = 0; i < 16; i++) turned[i] = v[(i >> 3 & 1) * 4 + (i >> 2 & 1) + (i >> 1 & 1) * 8 + (i & 1) * 2];
  halve(turned, halves);
  __m512d wide[4];
  for (int i = 0; i < 2; i++) {
    float16 numbers[32];
    std::memcpy(numbers, &halves[i], sizeof numbers);
    wide[i] = (__m512d)load(numbers);
    wide[2 + i] = (__m512d)load(numbers + 16);
  }
  Floats a = (Floats)_mm512_unpacklo_pd(wide[0], wide[1]) + (Floats)_mm512_unpackhi_pd(wide[0], wide[1]);
  Floats b = (Floats)_mm512_unpacklo_pd(wide[2], wide[3]) + (Floats)_mm512_unpackhi_pd(wide[2], wide[3]);
  return (Floats)_mm512_shuffle_ps(a, b, 0x88) + (Floats)_mm512_shuffle_ps(a, b, 0xDD);
}
inline float total(__m512h v) {  // in the order of `fold`
  __m256h a = _mm512_castph512_ph256(v) + (__m256h)_mm512_extracti64x4_epi64((__m512i)v, 1);
  __m128h b = _mm256_castph256_ph128(a) + (__m128h)_mm256_extracti128_si256((__m256i)a, 1);
  __m128 c = _mm_cvtxph_ps(b + (__m128h)_mm_bsrli_si128((__m128i)b, 8));
  return (c[0] + c[2]) + (c[1] + c[3]);
}
#endif

// The sums of a tile's vectors: sums[t][r] that of acc[r][t]. In AVX-512 those of 4 tokens are folded at once.
template <int first, int R, int T, class V> inline void totals(const V (&acc)[R][T], float (&sums)[T][R]) {
#ifdef __AVX512F__
  if constexpr (R == ROWS) {
    constexpr int some = std::min(T - first, 4);
    V group[16] = {};
    for (int r = 0; r < R; r++)
      for (int t = 0; t < some; t++) group[4 * r + t] = acc[r][first + t];
    float folded[16];
    store(folded, fold(group));
    std::memcpy(sums[first], folded, some * sizeof sums[first]);
    if constexpr (first + some < T) totals<first + some>(acc, sums);
    return;
  }
#endif
  for (int t = 0; t < T; t++) for (int r = 0; r < R; r++) sums[t][r] = total(acc[r][t]);
}

inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline Four fused(Four a, float b, Four c) {
#ifdef __FMA__
  return (Four)_mm_fmadd_ps((__m128)a, _mm_set1_ps(b), (__m128)c);
#else
  for (int i = 0; i < 4; i++) c[i] = std::fma(a[i], b, c[i]);
  return c;
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
#ifdef __AVX512FP16__
inline float widen(float16 x) { return x; }
inline void narrow(float x, float16* to) { *to = float16(x); }
#endif

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

// Weights are asked for before they are needed. Rows that are read along stripes, on Intel's processors: 4 KiB before,
// which is 1.03 times as fast in fp32, 1.15 in bf16; AMD's foresee them, and better. Rows side by side: those after the
// next, and into the second cache: the first would lose what is being worked on (16 texts in fp32 take 1.3 times as
// long). On Intel's processors each tile of tokens asks for its share of them: where all ask for all, most is asked for
// during the first tile, and products and memory take turns (16 texts in bf16: 24.6 ms, so 21.1). On AMD's each asks for
// all, in the order of memory, some of which is not heard.
constexpr int STRIPES = 3;
constexpr int FEW = 16;  // tokens, which all fit into a cache
constexpr int MANY = INTEL ? 64 : 32;  // rows that take their turn at a tile's tokens, where they do not
constexpr int LOTS = 64;  // tokens, for which weights are widened once: 512 take 0.54 s of 124M in bf16, not 0.58; 32 lose
struct Nothing {};
struct Ahead { const char* from; unsigned rows; };  // a bit for each row of which a line is asked for, as one is read
template <int R> inline void ask(Nothing, int64_t, int) {}
template <int R>
__attribute__((always_inline))  // else GCC takes it for a function that does nothing
inline void ask(const Ahead& ahead, int64_t apart, int k) {
  if constexpr (R == STRIPES) {
    for (int r = 0; INTEL && r < R; r++) __builtin_prefetch(ahead.from + r * apart + k, 0, 3);
  } else {
    for (int r = 0; r < R; r++)
      if (ahead.rows >> r & 1) __builtin_prefetch(INTEL ? ahead.from + r * apart + k : ahead.from + R * k + 64 * r, 0, 2);
  }
}
inline Nothing beyond(Nothing, int64_t) { return {}; }
inline Ahead beyond(const Ahead& ahead, int64_t bytes) { return {ahead.from + bytes, ahead.rows}; }
template <int R> inline Ahead share(const char* rows, int64_t size, int n, int token, int turn, int turns) {
  Ahead ahead = {rows + (INTEL && n > FEW ? MANY : 2 * R) * size, 0};
  if (R == ROWS && !INTEL && token < FEW) ahead.rows = (1u << R) - 1;
  // Where there are more turns than rows, the last ones ask: it is soon enough.
  if (R == ROWS && INTEL)
    for (int r = turn - std::max(turns - R, 0); r < R; r += turns) if (r >= 0) ahead.rows |= 1u << r;
  return ahead;
}

struct Matrix { const void* weight; const float *scales, *row_sums, *bias; };

// GCC writes the loops of products well where it sees nothing else: not one that may have no turn at all, nor sums that
// are set at once as an array, nor a function inside another. Else it keeps sums in memory, and a piece of 512 tokens
// takes 1.3 times as long in fp32 and in int8.
#define APART __attribute__((noinline))

// Precisions: how weights are stored, what a token's numbers become before they meet them, sums of products, and what
// numbers of `V`, rows side by side, become at the end. TOKENS: the most of a tile. WIDENS: weights may become floats.

struct Fp32 {
  static constexpr int TOKENS = WIDEST;
  static constexpr bool WIDENS = false;
  using Weight = float;
  using Input = float;
  static float prepare(const float* x, Input* to, int size) { std::memcpy(to, x, sizeof(float) * size); return 1; }
  template <int R, int T, class A> static APART void dots(const Weight* w, int64_t step, const Input* x, int size, A ahead, float (&sums)[T][R]) {
    Floats acc[R][T];
    for (auto& row : acc) for (auto& sum : row) sum = Floats{};
    int k = 0;
    do {
      Floats a[R];
      for (int r = 0; r < R; r++) a[r] = held<R>(load(w + r * step + k));
      ask<R>(ahead, step * sizeof(Weight), k * sizeof(Weight));
      for (int t = 0; t < T; t++) {
        Floats b = held<R>(load(x + t * size + k));
        for (int r = 0; r < R; r++) acc[r][t] += a[r] * b;
      }
    } while ((k += LANES) < size);
    totals<0>(acc, sums);
  }
  template <class V> static V finish(V sums, const Matrix& m, int row, float) { return sums + raw<V>(m.bias + row); }
  static float at(const Weight* w, const float*, int row, int size, int k) { return w[int64_t(row) * size + k]; }
};

// Intel's instruction for bf16 does half as many products a second as that for fp32 (89 and 175 G); AMD's, twice as many.
#if defined(__AVX512BF16__) && !defined(__AVX512FP16__)  // AMD
struct Bf16 {
  static constexpr int TOKENS = 4;
  static constexpr bool WIDENS = false;
  using Weight = bfloat16;
  using Input = bfloat16;
  static float prepare(const float* x, Input* to, int size) {
    for (int k = 0; k < size; k++) narrow(x[k], to + k);
    return 1;
  }
  template <int R, int T, class A> static APART void dots(const Weight* w, int64_t step, const Input* x, int size, A ahead, float (&sums)[T][R]) {
    Floats acc[R][T];
    for (auto& row : acc) for (auto& sum : row) sum = Floats{};
    int k = 0;
    do {
      __m512bh a[R];
      for (int r = 0; r < R; r++) a[r] = raw<__m512bh>(w + r * step + k);
      ask<R>(ahead, step * sizeof(Weight), k * sizeof(Weight));
      for (int t = 0; t < T; t++) {
        __m512bh b = raw<__m512bh>(x + t * size + k);
        for (int r = 0; r < R; r++) acc[r][t] = (Floats)_mm512_dpbf16_ps((__m512)acc[r][t], a[r], b);
      }
    } while ((k += 32) < size);
    totals<0>(acc, sums);
  }
#else
struct Bf16 {
  static constexpr int TOKENS = WIDEST;
  static constexpr bool WIDENS = true;
  using Weight = bfloat16;
  using Input = float;  // of two registers, the numbers of even places, then those of odd ones
  static float prepare(const float* x, Input* to, int size) {
    for (int start = 0; start < size; start += 2 * LANES)
      for (int k = 0; k < LANES; k++) {
        to[start + k] = x[start + 2 * k];
        to[start + LANES + k] = x[start + 2 * k + 1];
      }
    return 1;
  }
  static Floats even(const Weight* w) { return (Floats)(raw<Ints>(w) << 16); }  // of a register's 2 LANES of weights
  static Floats odd(const Weight* w) { return (Floats)(raw<Ints>(w) & ~0xffff); }
  static Floats even(const float* w) { return load(w); }  // of weights that have been widened
  static Floats odd(const float* w) { return load(w + LANES); }
  static void widened(const Weight* w, int64_t count, float* to) {
    for (int64_t k = 0; k < count; k += 2 * LANES) {
      store(to + k, even(w + k));
      store(to + k + LANES, odd(w + k));
    }
  }
  template <int R, int T, class W, class A> static APART void dots(const W* w, int64_t step, const Input* x, int size, A ahead, float (&sums)[T][R]) {
    Floats acc[R][T];
    for (auto& row : acc) for (auto& sum : row) sum = Floats{};
    auto multiply = [&](int k, const Floats (&a)[R]) {
      for (int t = 0; t < T; t++) {
        Floats b = held<R>(load(x + t * size + k));
        for (int r = 0; r < R; r++) acc[r][t] += a[r] * b;
      }
    };
    int k = 0;
    do {
      Floats a[R];
      for (int r = 0; r < R; r++) a[r] = held<R>(even(w + r * step + k));
      multiply(k, a);
      ask<R>(ahead, step * sizeof(Weight), k * sizeof(Weight));
      for (int r = 0; r < R; r++) a[r] = held<R>(odd(w + r * step + k));
      multiply(k + LANES, a);
    } while ((k += 2 * LANES) < size);
    totals<0>(acc, sums);
  }
#endif
  template <class V> static V finish(V sums, const Matrix& m, int row, float) { return sums + raw<V>(m.bias + row); }
  static float at(const Weight* w, const float*, int row, int size, int k) { return widen(w[int64_t(row) * size + k]); }
};

#ifdef __AVX512FP16__
// Twice as many products a second as in fp32, since their sums have 16 bits, too. So a register of sums takes 24 products
// (768 of one output), and then goes on in 32 bits: what it loses is less than what bf16 loses of the weights.
struct Fp16 {
  static constexpr int TOKENS = WIDEST, SOME = 24 * 32;
  static constexpr bool WIDENS = false;
  using Weight = float16;
  using Input = float16;
  // Inputs are taken times a power of two that makes the largest 8 to 16: no sum overflows with weights up to 170.
  static float prepare(const float* x, Input* to, int size) {
    float largest = 0;
#pragma omp simd reduction(max : largest)
    for (int k = 0; k < size; k++) largest = std::max(largest, std::fabs(x[k]));
    int exponent = std::max(std::ilogb(largest), -100) - 3;  // -100: of zeros alone
    float inverse = std::ldexp(1.0f, -exponent);
    for (int k = 0; k < size; k += LANES) {  // GCC converts them one by one
      __m256h some = _mm512_cvtxps_ph((__m512)(load(x + k) * inverse));
      std::memcpy(to + k, &some, sizeof some);
    }
    return std::ldexp(1.0f, exponent);
  }
  template <int R, int T, class A> static APART void some(const Weight* w, int64_t step, const Input* x, int apart, int size, A ahead, float (&sums)[T][R]) {
    __m512h acc[R][T];
    for (auto& row : acc) for (auto& sum : row) sum = _mm512_setzero_ph();
    int k = 0;
    do {
      __m512h a[R];
      for (int r = 0; r < R; r++) a[r] = held<R>(raw<__m512h>(w + r * step + k));
      ask<R>(ahead, step * sizeof(Weight), k * sizeof(Weight));
      for (int t = 0; t < T; t++) {
        __m512h b = held<R>(raw<__m512h>(x + t * apart + k));
        for (int r = 0; r < R; r++) acc[r][t] = _mm512_fmadd_ph(a[r], b, acc[r][t]);
      }
    } while ((k += 32) < size);
    totals<0>(acc, sums);
  }
  template <int R, int T, class A> static void dots(const Weight* w, int64_t step, const Input* x, int size, A ahead, float (&sums)[T][R]) {
    some<R, T>(w, step, x, size, std::min(size, SOME), ahead, sums);
    for (int k = SOME; k < size; k += SOME) {
      float more[T][R];
      some<R, T>(w + k, step, x + k, size, std::min(size - k, SOME), beyond(ahead, k * sizeof(Weight)), more);
      for (int t = 0; t < T; t++) for (int r = 0; r < R; r++) sums[t][r] += more[t][r];
    }
  }
  template <class V> static V finish(V sums, const Matrix& m, int row, float scale) {
    return fused(sums, scale, raw<V>(m.bias + row));
  }
  static float at(const Weight* w, const float*, int row, int size, int k) { return widen(w[int64_t(row) * size + k]); }
};
#endif

struct Int8 {  // weights have a scale a row, inputs a scale a token
  static constexpr int TOKENS = std::min(WIDEST, 4);
  static constexpr bool WIDENS = false;
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
  template <int R, int T, class A> static APART void dots(const Weight* w, int64_t step, const Input* x, int size, A ahead, float (&sums)[T][R]) {
#ifdef __AVX512VNNI__
    __m512i acc[R][T];
    for (auto& row : acc) for (auto& sum : row) sum = __m512i{};
    int k = 0;
    do {
      __m512i a[R];
      for (int r = 0; r < R; r++) a[r] = held<R>(raw<__m512i>(w + r * step + k));
      ask<R>(ahead, step, k);
      for (int t = 0; t < T; t++) {
        __m512i b = held<R>(raw<__m512i>(x + t * size + k));
        for (int r = 0; r < R; r++) acc[r][t] = _mm512_dpbusd_epi32(acc[r][t], b, a[r]);
      }
    } while ((k += 64) <= size - 64);
    totals<0>(acc, sums);
    if (k < size) rest(w, step, x, size, k, sums);
#else
    for (int r = 0; r < R; r++)
      for (int t = 0; t < T; t++) {
        int32_t sum = 0;
        for (int k = 0; k < size; k++) sum += int32_t(w[r * step + k]) * x[t * size + k];
        sums[t][r] = sum;
      }
#endif
  }
  // Of widths such as 160, what whole registers leave over.
  template <int R, int T> static APART void rest(const Weight* w, int64_t step, const Input* x, int size, int from, float (&sums)[T][R]) {
    for (int r = 0; r < R; r++)
      for (int t = 0; t < T; t++) {
        int32_t sum = 0;
        for (int k = from; k < size; k++) sum += int32_t(w[r * step + k]) * x[t * size + k];
        sums[t][r] += sum;
      }
  }
  template <class V> static V finish(V sums, const Matrix& m, int row, float scale) {
    // Spelled out, because a compiler may or may not join a product and a sum, and tiles would differ in the last bit.
    return fused((sums - 128 * raw<V>(m.row_sums + row)) * raw<V>(m.scales + row), scale, raw<V>(m.bias + row));
  }
  static float at(const Weight* w, const float* scales, int row, int size, int k) {
    return w[int64_t(row) * size + k] * scales[row];
  }
};

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

// sink(token, row, numbers) with R numbers of W x + b, of rows side by side; or, of rows that lie apart, each by itself.
template <class P, int R, int T, class W, class A, class Sink>
inline void tile(const Matrix& m, const W* w, const typename P::Input* in, const float* scales, int size, int row, int token, A ahead, Sink sink, int apart = 1) {
  float sums[T][R];
  P::template dots<R, T>(w, int64_t(apart) * size, in + int64_t(token) * size, size, ahead, sums);
  for (int t = 0; t < T; t++) {
    if constexpr (R == ROWS) {
      Four finished = P::finish(raw<Four>(sums[t]), m, row, scales[token + t]);
      sink(token + t, row, (const float(&)[R])finished);
    } else for (int r = 0; r < R; r++) {
      float finished[1] = {P::finish(sums[t][r], m, row + r * apart, scales[token + t])};
      sink(token + t, row + r * apart, finished);
    }
  }
}

// Rows from one to another by all tokens, in tiles of about as many tokens each. `w` is the first of these rows, as they
// are stored or widened.
template <class P, int R, class W, class Sink>
inline void tiles(const Matrix& m, const W* w, const typename P::Input* in, const float* scales, int n, int size, int first, int end, Sink sink) {
  const int turns = (n + P::TOKENS - 1) / P::TOKENS;
  for (int token = 0, turn = 0; turn < turns; turn++) {
    int count = (n - token + turns - turn - 1) / (turns - turn);
    const auto* stored = (const typename P::Weight*)m.weight + int64_t(first) * size;
    const int64_t step = size * sizeof(typename P::Weight);
    Ahead ahead = share<R>((const char*)stored, step, n, token, turn, turns);
    auto all_rows = [&](auto tokens) {
      if constexpr (tokens <= P::TOKENS)
        for (int row = first; row < end; row += R, ahead.from += R * step) {
          auto asking = [&](auto what) {
            tile<P, R, tokens>(m, w + int64_t(row - first) * size, in, scales, size, row, token, what, sink);
          };
          if (ahead.rows) asking(ahead);
          else asking(Nothing());
        }
    };
    if (count == 1) all_rows(std::integral_constant<int, 1>());
    if (count == 2) all_rows(std::integral_constant<int, 2>());
    if (count == 3) all_rows(std::integral_constant<int, 3>());
    if (count == 4) all_rows(std::integral_constant<int, 4>());
    if (count == 5) all_rows(std::integral_constant<int, 5>());
    if (count == 6) all_rows(std::integral_constant<int, 6>());
    token += count;
  }
}

// Numbers of this thread, kept from one reading to the next: memory that is new each time takes 0.08 ms of the 2.5 that
// a token of 124M takes in int8. They begin with a line of the cache, else each register would be read from two.
template <int which, class T> T* kept(size_t count) {
  struct alignas(64) Line { T numbers[64 / sizeof(T)]; };
  static thread_local std::vector<Line> lines;
  const size_t needed = (count * sizeof(T) + 63) / 64;
  if (lines.size() < needed) lines.resize(needed);
  return lines.data()->numbers;
}

// All rows by all tokens; the threads share the rows, and wait for each other at the end. For a single token all depends
// on memory, which gives more if it is read at some places at once: each thread goes along as many stripes of the matrix.
template <class P, class Sink>
void multiply(const Matrix& m, const typename P::Input* in, const float* scales, int n, int rows, int size, Sink sink) {
  const auto* stored = (const typename P::Weight*)m.weight;
  if (n == 1) {
    const int stripe = rows / STRIPES;
    auto of = [&](int row) { return stored + int64_t(row) * size; };
#pragma omp for schedule(static) nowait
    for (int row = 0; row < stripe; row++)
      tile<P, STRIPES, 1>(m, of(row), in, scales, size, row, 0, Ahead{(const char*)of(row) + 4096, 0}, sink, stripe);
#pragma omp for schedule(static)
    for (int row = stripe * STRIPES; row < rows; row++) tile<P, 1, 1>(m, of(row), in, scales, size, row, 0, Nothing(), sink);
    return;
  }
  const int together = n > FEW ? MANY : ROWS, whole = rows / ROWS * ROWS;
#pragma omp for schedule(static) nowait
  for (int row = 0; row < whole; row += together) {
    const int end = std::min(row + together, whole);
    const auto* w = stored + int64_t(row) * size;
    if constexpr (P::WIDENS) {
      if (n >= LOTS) {
        float* wide = kept<9, float>(size_t(together) * size);
        P::widened(w, int64_t(end - row) * size, wide);
        tiles<P, ROWS>(m, wide, in, scales, n, size, row, end, sink);
        continue;
      }
    }
    tiles<P, ROWS>(m, w, in, scales, n, size, row, end, sink);
  }
#pragma omp for schedule(static)
  for (int row = whole; row < rows; row++)
    tiles<P, 1>(m, stored + int64_t(row) * size, in, scales, n, size, row, row + 1, sink);
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

// Keys and values of a head lie together, those of the next elsewhere: on Intel's processors they are asked for so many
// tokens before they are needed, and short ones of the head after this one into the second cache, each as one of this is.
// A step of 16 texts of 600 tokens of 124M takes 24 ms in int8 with the first, 28 without; one of 96 tokens 8.6 ms with
// both, 9.2 with the first alone. Long ones would lose by the second: 600 tokens in fp32 53 ms, not 49.
constexpr int AHEAD = 16, SHORT = 32768;  // bytes
template <int cache, class Stored>
__attribute__((always_inline)) inline void ask(const Stored* from, int count) {
  for (int k = 0; INTEL && k < count; k += 64 / sizeof(Stored)) __builtin_prefetch(from + k, 0, 4 - cache);
}

// Q K of 4 queries and 4 keys, or of one and as many keys as a register has numbers; scores[g] is that of query g. Where
// keys end sooner, the last one is repeated.
template <int G> constexpr int KEYS = G == 1 ? LANES : 4;
template <int G, class Stored>
inline void score(const float* q, int stride, const Stored* keys, int64_t next, int left, int size, float (&scores)[G][KEYS<G>]) {
  const Stored* key[KEYS<G>];
  for (int k = 0; k < KEYS<G>; k++) {
    key[k] = keys + int64_t(std::min(k, left - 1)) * size;
    ask<1>(keys + int64_t(std::min(k + AHEAD, left - 1)) * size, size);
    if (next) ask<2>(key[k] + next, size);
  }
#ifdef __AVX512F__
  Floats sums[16] = {};  // in the order that `fold` turns
  for (int d = 0; d < size; d += LANES) {
    if constexpr (G == 1) {
      Floats a = held(load(q + d));
      for (int k = 0; k < 16; k++) sums[4 * (k % 4) + k / 4] += a * load(key[k] + d);
    } else {
      Floats b[4];
      for (int k = 0; k < 4; k++) b[k] = held(load(key[k] + d));
      for (int g = 0; g < 4; g++) {
        Floats a = held(load(q + g * stride + d));
        for (int k = 0; k < 4; k++) sums[4 * k + g] += a * b[k];
      }
    }
  }
  store(scores[0], fold((const __m512*)sums));
#else
  for (int g = 0; g < G; g++)
    for (int k = 0; k < KEYS<G>; k++) {
      Floats sum = {};
      for (int d = 0; d < size; d += LANES) sum += load(q + g * stride + d) * load(key[k] + d);
      scores[g][k] = total(sum);
    }
#endif
}

// Means of values by the scores of G queries, N registers of each.
template <int G, int N, class Stored>
inline void weigh(const Stored* values, int64_t next, int seen, int size, const float* scores, int room, const float* inverse, float* to, int stride) {
  Floats sums[G][N] = {};
  for (int s = 0; s < seen; s++) {
    ask<1>(values + int64_t(std::min(s + AHEAD, seen - 1)) * size, N * LANES);
    if (next) ask<2>(values + next + int64_t(s) * size, N * LANES);
    for (int i = 0; i < N; i++) {
      Floats value = held(load(values + int64_t(s) * size + i * LANES));
      for (int g = 0; g < G; g++) sums[g][i] += scores[g * room + s] * value;
    }
  }
  for (int g = 0; g < G; g++) for (int i = 0; i < N; i++) store(to + g * stride + i * LANES, sums[g][i] * inverse[g]);
}

// One head of G tokens in a row: softmax(Q K / sqrt(size)) V over the `seen` tokens that the first of them sees, one more
// for each of the others. Called with room for as many scores of each. What a token gets does not depend on G. `next`:
// how far from here those of the head lie that this thread turns to afterwards; 0: nobody knows.
template <int G, class Stored>
void attend(const float* q, const Stored* keys, const Stored* values, int64_t next, int seen, int size, int stride, float* scores, int room, float* to) {
  const float scale = 1 / std::sqrt(float(size));
  const int end = seen + G - 1;  // of what the last one sees
  if (end * size * sizeof(Stored) > SHORT) next = 0;
  for (int s = 0; s < end; s += KEYS<G>) {
    float some[G][KEYS<G>];
    score<G>(q, stride, keys + int64_t(s) * size, next, end - s, size, some);
    for (int g = 0; g < G; g++) for (int k = 0; k < KEYS<G>; k++) scores[g * room + s + k] = some[g][k] * scale;
  }
  for (int s = 0; s < std::min(AHEAD, end); s++) ask<1>(values + int64_t(s) * size, size);
  float inverse[G];
  Ints place;
  for (int i = 0; i < LANES; i++) place[i] = i;
  for (int g = 0; g < G; g++) {
    float* own = scores + g * room;
    Floats most = Floats{} - INFINITY, sums = {};
    for (int s = 0; s < end; s += LANES) {
      Floats some = place + s < seen + g ? load(own + s) : Floats{} - INFINITY;
      most = some > most ? some : most;
    }
    float largest = -INFINITY;
    for (int i = 0; i < LANES; i++) largest = std::max(largest, most[i]);
    for (int s = 0; s < end; s += LANES) {
      Floats p = place + s < seen + g ? exponential(load(own + s) - largest) : Floats{};
      sums += p;
      store(own + s, p);
    }
    inverse[g] = 1 / total(sums);
  }
  int d = 0;
  for (; d + 4 * LANES <= size; d += 4 * LANES) weigh<G, 4>(values + d, next, end, size, scores, room, inverse, to + d, stride);
  for (; d < size; d += LANES) weigh<G, 1>(values + d, next, end, size, scores, room, inverse, to + d, stride);
}

template <class P, class Stored>
void read(const Model& m, const int32_t* ids, const int32_t* rows, const int32_t* positions, int n,
          const int32_t* wanted, int n_wanted, float* logits) {
  const int width = m.width, size = width / m.heads;
  const size_t numbers = size_t(n) * width;
  float *x = kept<0, float>(numbers), *y = kept<1, float>(numbers), *q = kept<2, float>(numbers);
  float *hidden = kept<3, float>(4 * numbers), *scales = kept<4, float>(n);
  auto* in = kept<7, typename P::Input>(4 * numbers);
  // Where in the cache a token's numbers of a layer lie, and from there those of a channel.
  auto start = [&](int layer, int token) {
    return ((int64_t(layer) * m.rows + rows[token]) * m.heads * m.capacity + positions[token]) * size;
  };
  auto offset = [&](int channel) { return int64_t(channel / size) * m.capacity * size + channel % size; };
  Stored *keys = (Stored*)m.keys, *values = (Stored*)m.values;

#pragma omp parallel num_threads(m.threads)
  {
    const int room = m.capacity + LANES;
    float* scores = kept<5, float>(4 * room);
    // What lies between two matrices takes less time than waiting for a thread that does it: with a single token each
    // thread does all of it for itself, and they wait for each other only where they have shared work.
    const bool alone = n == 1;
    float own_scale, *between = alone ? kept<6, float>(4 * width) : hidden, *scale = alone ? &own_scale : scales;
    auto* input = alone ? kept<8, typename P::Input>(4 * width) : in;
    auto for_each = [&](int count, auto work) {
      if (alone) {
        for (int t = 0; t < count; t++) work(t);
      } else {
#pragma omp for schedule(static)
        for (int t = 0; t < count; t++) work(t);
      }
    };
    auto prepare_norm = [&](const Norm& norm, int count, auto token_of) {
      for_each(count, [&](int t) {
        float* normal = between + int64_t(t) * width;
        normalize(&x[token_of(t) * width], norm, width, normal);
        scale[t] = P::prepare(normal, input + int64_t(t) * width, width);
      });
    };
    auto every = [](int t) { return t; };
    auto add = [&](int t, int channel, const auto& numbers) {
      for (float number : numbers) x[t * width + channel++] += number;
    };
#pragma omp for schedule(static)
    for (int t = 0; t < n; t++)
      for (int k = 0; k < width; k++)
        x[t * width + k] = P::at((const typename P::Weight*)m.wte.weight, m.wte.scales, ids[t], width, k) +
                           m.wpe[int64_t(positions[t]) * width + k];

    for (int layer = 0; layer < m.layers; layer++) {
      const Block& block = m.blocks[layer];
      prepare_norm(block.ln_1, n, every);
      multiply<P>(block.attention, input, scale, n, 3 * width, width, [&](int t, int first, const auto& numbers) {
        if (first < width) return (void)std::memcpy(&q[t * width + first], numbers, sizeof numbers);
        bool of_key = first < 2 * width;  // rows side by side are of one head of either
        Stored* to = (of_key ? keys : values) + start(layer, t) + offset(first - (of_key ? width : 2 * width));
        for (float number : numbers) narrow(number, to++);
      });
#pragma omp for schedule(dynamic) collapse(2)
      for (int block = 0; block < (n + 3) / 4; block++)
        for (int head = 0; head < m.heads; head++) {
          int t = 4 * block, end = std::min(n, t + 4);
          bool in_a_row = t + 4 <= n && rows[t] == rows[t + 3] && positions[t] + 3 == positions[t + 3];
          auto of = [&](int t, int head) { return start(layer, t) - int64_t(positions[t]) * size + offset(head * size); };
          auto attend_from = [&](auto group, int t) {
            int64_t first = of(t, head), next = t + group < end ? of(t + 1, head) - first : 0, place = t * width + head * size;
            attend<group>(&q[place], keys + first, values + first, next, positions[t] + 1, size, width, scores, room, &y[place]);
          };
          if (in_a_row) attend_from(std::integral_constant<int, 4>(), t);
          else for (; t < end; t++) attend_from(std::integral_constant<int, 1>(), t);
        }
      for_each(n, [&](int t) { scale[t] = P::prepare(&y[t * width], input + int64_t(t) * width, width); });
      multiply<P>(block.attention_out, input, scale, n, width, width, add);

      prepare_norm(block.ln_2, n, every);
      multiply<P>(block.up, input, scale, n, 4 * width, width,
                  [&](int t, int channel, const auto& numbers) { std::memcpy(&hidden[t * 4 * width + channel], numbers, sizeof numbers); });
      for_each(n, [&](int t) {
        float* active = between + int64_t(t) * 4 * width;
        if (alone) std::memcpy(active, &hidden[0], 4 * width * sizeof(float));
        gelu(active, 4 * width);
        scale[t] = P::prepare(active, input + int64_t(t) * 4 * width, 4 * width);
      });
      multiply<P>(block.down, input, scale, n, width, 4 * width, add);
    }
    prepare_norm(m.ln_f, n_wanted, [&](int i) { return wanted[i]; });
    multiply<P>(m.wte, input, scale, n_wanted, m.vocabulary, width,
                [&](int t, int id, const auto& numbers) { std::memcpy(logits + int64_t(t) * m.vocabulary + id, numbers, sizeof numbers); });
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
#ifdef __AVX512FP16__
  if (precision == 3) read<Fp16, float16>(*m, ids, rows, positions, n, wanted, n_wanted, logits);
#endif
}

// Tokens of a piece up to which this is the fastest way to read it; 0: it cannot. Where the processor multiplies matrices
// of this precision by 512 bits at once, that is any piece; elsewhere PyTorch's libraries do long ones better. Of bf16
// fp32's products are enough: 512 tokens of 124M take 0.49 s with them, PyTorch without instructions for bf16 1.6 s.
extern "C" int32_t most_tokens(int precision) {
#ifdef __AVX512F__
  bool wide = precision <= 1;
#ifdef __AVX512VNNI__
  wide |= precision == 2;
#endif
#ifdef __AVX512FP16__
  wide |= precision == 3;
#endif
  if (wide) return INT32_MAX;
#endif
  return precision == 3 ? 0 : 32;
}
