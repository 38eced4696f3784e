// What a training step on a CPU spends most of its time on, where the processor multiplies and adds numbers of 16 bits
// twice as fast as any others (AVX512-FP16): products of matrices, and GELU. All that comes and goes has 32 bits.
//
// A product's inputs are narrowed a block at a time, each multiplied by a power of two that makes its largest number
// about 16: none overflows, and what is lost is 2^-29 of that. DEPTH products are summed up in 16 bits, 24,576 at most,
// then 32 bits go on. Two blocks with normally distributed numbers so come within 0.15 % of their product (bf16: 0.23).
// Every number is summed up in the same order with any number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <immintrin.h>
#include <omp.h>

#ifdef __AVX512FP16__

namespace {

constexpr int ROWS = 12, COLUMNS = 64;  // of a tile: 24 sums of 32 numbers, of the 32 registers that there are
constexpr int DEPTH = 96;               // 48 would be 6 % slower, and its error a third less
constexpr int AHEAD = 48;               // rows are asked for so many before they are narrowed

inline __mmask16 first(int count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }

// The left matrix as pairs of the same number, since a register is filled from 32 bits in one instruction, from 16 in two.
struct Left {
  typedef uint32_t Number;
  static constexpr int WIDTH = ROWS;
  static void put(__m512 v, Number* to) {
    const __m512i once = _mm512_cvtepu16_epi32(_mm256_castph_si256(_mm512_cvtxps_ph(v)));
    _mm512_mask_storeu_epi32(to, first(ROWS), _mm512_or_si512(once, _mm512_slli_epi32(once, 16)));
  }
};
struct Right {
  typedef _Float16 Number;
  static constexpr int WIDTH = COLUMNS;
  static void put(__m512 v, Number* to) { _mm256_storeu_si256((__m256i*)to, _mm256_castph_si256(_mm512_cvtxps_ph(v))); }
};

// 16 rows of 16 numbers become columns.
inline void transpose(__m512 (&r)[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + 2 + j]);
      r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; j++) {
      t[i + j] = _mm512_shuffle_f32x4(r[i + j], r[i + 4 + j], 0x88);
      t[i + 4 + j] = _mm512_shuffle_f32x4(r[i + j], r[i + 4 + j], 0xdd);
    }
  for (int j = 0; j < 8; j++) {
    r[j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0x88);
    r[8 + j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0xdd);
  }
}

// The power of two that makes a number, given by its bits, at least 8, and less than 16.
inline float power_for(int32_t bits) {
  const int exponent = bits >> 23;  // 127 for numbers from 1 to 2
  return std::ldexp(1.0f, std::clamp(130 - exponent, -100, 100));
}

// Narrow a block of `count` rows (or columns) by `depth` inner numbers to [depth][WIDTH], zeros behind the last row;
// `outer` and `inner` lie between two of each. Returns by what its numbers are to be multiplied again.
template <class Side>
float narrow(const float* from, int64_t outer, int64_t inner, int count, int depth, typename Side::Number* to) {
  constexpr int WIDTH = Side::WIDTH;
  __m512i largest = _mm512_setzero_si512();  // as whole numbers, which are compared in a cycle, and not in four
  const auto look = [&](const float* at, int64_t next, __mmask16 these) {
    __builtin_prefetch(at + next);
    const __m512i numbers = _mm512_maskz_loadu_epi32(these, at);
    largest = _mm512_max_epi32(largest, _mm512_and_si512(numbers, _mm512_set1_epi32(0x7fffffff)));
  };
  if (outer == 1)
    for (int k = 0; k < depth; k++)
      for (int g = 0; g < WIDTH; g += 16) look(from + k * inner + g, AHEAD * inner, first(count - g));
  else
    for (int o = 0; o < count; o++)
      for (int k = 0; k < depth; k += 16) look(from + o * outer + k, WIDTH * outer, first(depth - k));
  const float power = power_for(_mm512_reduce_max_epi32(largest));
  const __m512 scale = _mm512_set1_ps(power);
  for (int g = 0; g < WIDTH; g += 16)
    if (outer == 1)
      for (int k = 0; k < depth; k++)
        Side::put(_mm512_maskz_loadu_ps(first(count - g), from + k * inner + g) * scale, to + k * WIDTH + g);
    else
      for (int k = 0; k < depth; k += 16) {
        __m512 rows[16];
        for (int o = 0; o < 16; o++)
          rows[o] = _mm512_maskz_loadu_ps(g + o < count ? first(depth - k) : 0, from + (g + o) * outer + k) * scale;
        transpose(rows);
        for (int i = 0; i < std::min(16, depth - k); i++) Side::put(rows[i], to + (k + i) * WIDTH + g);
      }
  return 1 / power;
}

// A tile of sums in 32 bits, ROWS x COLUMNS: of `depth` products each, in 16 bits DEPTH of them.
template <int VECTORS>  // of 32 columns
void multiply(const uint32_t* left, const _Float16* right, const float* left_scales, const float* right_scales, int depth,
              float* tile) {
  for (int start = 0; start < depth; start += DEPTH) {
    const int end = std::min(depth, start + DEPTH);
    __m512h sums[ROWS][VECTORS];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_setzero_ph();
    for (int k = start; k < end; k++) {
      __builtin_prefetch(left + (k + 48) * ROWS);  // from the second cache
      for (int v = 0; v < VECTORS; v++) __builtin_prefetch(right + (k + 8) * COLUMNS + 32 * v);
      __m512h numbers[VECTORS];
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) numbers[v] = _mm512_loadu_ph(right + k * COLUMNS + 32 * v);
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; r++) {
        const __m512h number = (__m512h)_mm512_set1_epi32(left[k * ROWS + r]);
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_fmadd_ph(number, numbers[v], sums[r][v]);
      }
    }
    const __m512 scale = _mm512_set1_ps(left_scales[start / DEPTH] * right_scales[start / DEPTH]);
    const auto add = [&](__m256h v, float* to) {
      const __m512 before = start ? _mm512_load_ps(to) : _mm512_setzero_ps();
      _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtxph_ps(v), scale, before));
    };
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) {
        add(_mm512_castph512_ph256(sums[r][v]), tile + r * COLUMNS + 32 * v);
        add((__m256h)_mm512_extracti64x4_epi64((__m512i)sums[r][v], 1), tile + r * COLUMNS + 32 * v + 16);
      }
  }
}

// How much of the matrices is narrowed at once.
struct Portions {
  int64_t depth;        // inner numbers,
  int64_t blocks;       // in so many blocks;
  int64_t panels;       // of the right matrix, COLUMNS wide each: together 9 MB at most;
  int64_t left_panels;  // of the left one, ROWS high each, for each thread: 1.5 MB, most of its second cache

  Portions(int64_t columns, int64_t depth)
      : depth(std::min<int64_t>(depth, 32 * DEPTH)),
        blocks((this->depth + DEPTH - 1) / DEPTH),
        panels(std::min<int64_t>((columns + COLUMNS - 1) / COLUMNS, 24)),
        left_panels(std::max<int64_t>(1, (3 << 19) / (this->depth * ROWS * 4))) {}
  static int64_t even(int64_t bytes) { return (bytes + 63) / 64 * 64; }
  int64_t right_bytes() const { return even(panels * (COLUMNS * depth * 2 + blocks * 4)); }
  int64_t left_bytes() const { return even(left_panels * (ROWS * depth * 4 + blocks * 4)); }
};

// e^x = 2^n e^r with |r| <= ln(2) / 2, and a polynomial for e^r: within 2 units in the last place. Beyond +-87 it stays
// what it is there.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
  const float n = __builtin_rintf(x * 1.44269504f);
  const float r = __builtin_fmaf(n, -1.42860677e-6f, __builtin_fmaf(n, -0.693145752f, x));
  float p = 1.98412698e-4f;  // 1 / 7!, and so on
  p = __builtin_fmaf(p, r, 1.38888889e-3f);
  p = __builtin_fmaf(p, r, 8.33333333e-3f);
  p = __builtin_fmaf(p, r, 4.16666667e-2f);
  p = __builtin_fmaf(p, r, 1.66666667e-1f);
  p = __builtin_fmaf(p, r, 0.5f);
  p = __builtin_fmaf(p, r * r, r) + 1.0f;
  const int32_t power = (int32_t(n) + 127) << 23;
  float scale;
  __builtin_memcpy(&scale, &power, 4);
  return p * scale;
}

// s = 1 / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3): GELU's tanh form x (1 + tanh u) / 2 is x s.
constexpr float ROOT = 0.7978845608028654f, CUBE = 0.044715f;
inline float share(float x) { return 1.0f / (1.0f + exponential(-2.0f * ROOT * x * __builtin_fmaf(CUBE * x, x, 1.0f))); }

}  // namespace

extern "C" {

// Bytes that `product` needs beside its matrices.
int64_t scratch_bytes(int64_t columns, int64_t depth, int threads) {
  const Portions p(columns, depth);
  return p.right_bytes() + threads * p.left_bytes();
}

// C = A B + bias. A is rows x depth, B depth x columns, of two strides one is 1 each; C lies row by row. `scratch` begins
// at a multiple of 64.
void product(const float* a, int64_t a_row, int64_t a_inner, const float* b, int64_t b_inner, int64_t b_column,
             const float* bias, float* c, int64_t rows, int64_t columns, int64_t depth, char* scratch, int threads) {
  const Portions p(columns, depth);
  const int64_t panels = (rows + ROWS - 1) / ROWS;
  _Float16* const right = reinterpret_cast<_Float16*>(scratch);
  float* const right_scales = reinterpret_cast<float*>(right + p.panels * COLUMNS * p.depth);
#pragma omp parallel num_threads(threads)
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    uint32_t* const left = reinterpret_cast<uint32_t*>(scratch + p.right_bytes() + me * p.left_bytes());
    float* const left_scales = reinterpret_cast<float*>(left + p.left_panels * ROWS * p.depth);
    alignas(64) float tile[ROWS * COLUMNS];
    const int64_t from = panels * me / all, to = panels * (me + 1) / all;
    for (int64_t k = 0; k < depth; k += p.depth) {
      const int64_t inner = std::min(p.depth, depth - k);
      for (int64_t column = 0; column < columns; column += p.panels * COLUMNS) {
        const int64_t there = std::min(p.panels, (columns - column + COLUMNS - 1) / COLUMNS);
#pragma omp for schedule(static) collapse(2)
        for (int64_t q = 0; q < inner; q += DEPTH)
          for (int64_t j = 0; j < there; j++) {
            const int64_t at = column + j * COLUMNS;
            right_scales[j * p.blocks + q / DEPTH] = narrow<Right>(
                b + at * b_column + (k + q) * b_inner, b_column, b_inner, std::min<int64_t>(COLUMNS, columns - at),
                std::min<int64_t>(DEPTH, inner - q), right + (j * p.depth + q) * COLUMNS);
          }
        for (int64_t start = from; start < to; start += p.left_panels) {
          const int64_t end = std::min(to, start + p.left_panels);
          for (int64_t q = 0; q < inner; q += DEPTH)
            for (int64_t i = start; i < end; i++)
              left_scales[(i - start) * p.blocks + q / DEPTH] = narrow<Left>(
                  a + i * ROWS * a_row + (k + q) * a_inner, a_row, a_inner, std::min<int64_t>(ROWS, rows - i * ROWS),
                  std::min<int64_t>(DEPTH, inner - q), left + ((i - start) * p.depth + q) * ROWS);
          for (int64_t j = 0; j < there; j++) {
            const int64_t at = column + j * COLUMNS, count = std::min<int64_t>(COLUMNS, columns - at);
            for (int64_t i = start; i < end; i++) {
              const int high = std::min<int64_t>(ROWS, rows - i * ROWS);
              float* const corner = c + i * ROWS * columns + at;
              for (int r = 0; r < high; r++)  // it arrives while the tile is made
                for (int g = 0; g < count; g += 16) __builtin_prefetch(corner + r * columns + g, 1);
              (count > 32 ? multiply<2> : multiply<1>)(
                  left + (i - start) * p.depth * ROWS, right + j * p.depth * COLUMNS,
                  left_scales + (i - start) * p.blocks, right_scales + j * p.blocks, inner, tile);
              for (int g = 0; g < count; g += 16) {
                const __mmask16 these = first(count - g);
                const __m512 added = bias ? _mm512_maskz_loadu_ps(these, bias + at + g) : _mm512_setzero_ps();
                for (int r = 0; r < high; r++) {
                  float* const place = corner + r * columns + g;
                  const __m512 before = k ? _mm512_maskz_loadu_ps(these, place) : added;
                  _mm512_mask_storeu_ps(place, these, _mm512_load_ps(tile + r * COLUMNS + g) + before);
                }
              }
            }
          }
        }
#pragma omp barrier
      }
    }
  }
}

void gelu(const float* x, float* y, int64_t count, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; i++) y[i] = x[i] * share(x[i]);
}

void gelu_backward(const float* x, const float* outer, float* inner, int64_t count, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; i++) {
    const float s = share(x[i]), slope = 2.0f * ROOT * __builtin_fmaf(3.0f * CUBE * x[i], x[i], 1.0f);  // of 2u
    inner[i] = outer[i] * __builtin_fmaf(x[i] * slope, s * (1.0f - s), s);
  }
}

}

#endif
