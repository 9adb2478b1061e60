// One pass over θ, F_f and F_r for one rule. What is put before this file makes it that of a rule:
//   WEIGHT, BITS          the type of θ, and the unsigned integer of its size
//   NARROW                1 for bfloat16 and 2 for float16, whose WEIGHT is their bits; else 0
//   COMPUTE               the type that the rule computes in
//   FORGET, REFERENCE     the types of the totals
//   ZEROS                 1 when there is no reference: it is zero, and no memory is read for it
//   RULE                  statements that return θ' from theta, forget, reference and number[]; `odd |= …` refuses
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int BLOCK = 512;  // a block of each array stays in the innermost cache
using Wide = COMPUTE;

template <class To, class From>
inline To cast_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a view of the same bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

#if NARROW == 1
using Number = float;
constexpr BITS EXPONENT = 0x7f80;
inline Number widen(WEIGHT w) { return cast_bits<float>(std::uint32_t(w) << 16); }
inline BITS narrow(Number x) {  // to the nearest, ties to even; of a NaN nothing but its being one matters
    const std::uint32_t u = cast_bits<std::uint32_t>(x);
    const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return BITS(x != x ? 0x7fffu : rounded);
}
#elif NARROW == 2
using Number = float;
constexpr BITS EXPONENT = 0x7c00;
inline Number widen(WEIGHT w) { return float(cast_bits<_Float16>(w)); }
inline BITS narrow(Number x) { return cast_bits<BITS>(_Float16(x)); }
#else
using Number = WEIGHT;
constexpr BITS EXPONENT = BITS(sizeof(BITS) == 8 ? 0x7ff0000000000000u : 0x7f800000u);
inline Number widen(WEIGHT w) { return w; }
inline BITS narrow(Number x) { return cast_bits<BITS>(x); }
#endif

template <class T>
struct Unsigned;
template <>
struct Unsigned<float> { using type = std::uint32_t; };
template <>
struct Unsigned<double> { using type = std::uint64_t; };
using WideBits = Unsigned<Wide>::type;

constexpr double infinity = std::numeric_limits<double>::infinity();

template <class T>
inline T at_least(T x, T low) { return x < low ? low : x; }

template <class T>
inline T at_most(T x, T high) { return x > high ? high : x; }

template <class T>
inline T nan_to_num(T x, T nan, T high, T low) {
    const T not_above = x == T(infinity) ? high : x;
    const T finite = x == -T(infinity) ? low : not_above;
    return x != x ? nan : finite;
}

template <class T>
inline T larger(T x, T y, unsigned& odd) {
    odd |= (x == y) & (std::signbit(x) != std::signbit(y));
    const T z = x < y ? y : x;
    return y != y ? y : z;
}

template <class T>
inline T smaller(T x, T y, unsigned& odd) { return -larger(-x, -y, odd); }

inline Wide rule(Wide theta, Wide forget, Wide reference, const double* number, unsigned& odd) {
    (void)odd;
    RULE
}

// Integers of 16 or 32 bits, a vector at a time in lanes of 32: read, compared, and those of a mask stored side by side.
// A whole vector is stored: the next overwrites what is too much.
#if defined(__AVX512F__)
constexpr int LANES = 16;
using Vector = __m512i;
using Mask = std::uint16_t;
inline Vector read(const BITS* from) {
    return sizeof(BITS) == 4 ? _mm512_loadu_si512(from)
                             : _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Mask differ(Vector a, Vector b) { return Mask(_mm512_cmpneq_epi32_mask(a, b)); }
inline void store(BITS* to, Mask mask, Vector a) {
    const Vector packed = _mm512_maskz_compress_epi32(mask, a);
    if (sizeof(BITS) == 4)
        _mm512_storeu_si512(to, packed);
    else
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(packed));
}
#elif defined(__AVX2__)
constexpr int LANES = 8;
using Vector = __m256i;
using Mask = std::uint8_t;
struct Orders {  // for each mask, its lanes in order
    alignas(32) std::int32_t lane[256][LANES];
    constexpr Orders() : lane() {
        for (int mask = 0; mask < 256; ++mask)
            for (int i = 0, n = 0; i < LANES; ++i)
                if (mask >> i & 1) lane[mask][n++] = i;
    }
};
constexpr Orders ORDERS;
inline Vector read(const BITS* from) {
    return sizeof(BITS) == 4 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                             : _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline Mask differ(Vector a, Vector b) {
    return Mask(~_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b))));
}
inline void store(BITS* to, Mask mask, Vector a) {
    const Vector order = _mm256_load_si256(reinterpret_cast<const __m256i*>(ORDERS.lane[mask]));
    const Vector packed = _mm256_permutevar8x32_epi32(a, order);
    if (sizeof(BITS) == 4) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
    } else {
        const __m128i low = _mm256_castsi256_si128(packed), high = _mm256_extracti128_si256(packed, 1);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packus_epi32(low, high));
    }
}
#endif

// Writes the values of `old` at which `fresh` differs to `values`, and a bit for each place to `mask`.
inline std::int64_t keep(const BITS* old, const BITS* fresh, int length, std::uint8_t* mask, BITS* values) {
    std::int64_t kept = 0;
    int i = 0;
#if defined(__AVX2__)
    if (sizeof(BITS) <= 4)
        for (; i + LANES <= length; i += LANES) {
            const Vector was = read(old + i);
            const Mask word = differ(was, read(fresh + i));
            std::memcpy(mask + i / 8, &word, sizeof word);
            store(values + kept, word, was);
            kept += __builtin_popcount(word);
        }
#endif
    for (; i < length; i += 8) {
        unsigned byte = 0;
        const int end = i + 8 < length ? i + 8 : length;
        for (int j = i; j < end; ++j) {
            const unsigned differs = old[j] != fresh[j];
            byte |= differs << (j - i);
            values[kept] = old[j];
            kept += differs;
        }
        mask[i / 8] = std::uint8_t(byte);
    }
    return kept;
}

}  // namespace

extern "C" {

// Edits theta[0 … length) block by block and returns how many weights have other bits than before. Before a block is
// overwritten, its old values are in `values` and `mask`, and progress[0] says up to where that holds, progress[1] how
// many values there are. Stops at a block with a result that is not finite or that the rule calls odd, which it leaves
// as it was. `mask` has a byte for each 8 weights; `values` has room for all weights and 64 bytes more.
// Without `values` nothing is kept; without `write` nothing is overwritten.
std::int64_t one_pass(std::int64_t length, WEIGHT* theta, const FORGET* forget, const REFERENCE* reference,
                      double forget_count, double reference_count, const double* number, std::uint8_t* mask,
                      BITS* values, std::int64_t* progress, int write) {
    const FORGET by_forget = FORGET(forget_count);
    const REFERENCE by_reference = REFERENCE(reference_count);
    std::int64_t total = 0;
    if (values != nullptr) std::memset(mask, 0, std::size_t((length + 7) / 8));
    for (std::int64_t start = 0; start < length; start += BLOCK) {
        const int size = int(length - start < BLOCK ? length - start : BLOCK);
        WEIGHT* const block = theta + start;
        const FORGET* const f = forget + start;
        const REFERENCE* const r = reference + (ZEROS ? 0 : start);
        alignas(64) BITS fresh[BLOCK];
        unsigned odd = 0, changed = 0;
        for (int i = 0; i < size; ++i) {
            const BITS before = cast_bits<BITS>(block[i]);
            const Wide was = Wide(widen(block[i])), mean = Wide(f[i] / by_forget);
            const Wide other = ZEROS ? Wide(0) : Wide(r[i] / by_reference);
            const Wide edited = rule(was, mean, other, number, odd);
            // What the rule left alone keeps its own bits: not every NaN survives the way there and back.
            const bool alone = cast_bits<WideBits>(edited) == cast_bits<WideBits>(was);
            const BITS after = alone ? before : narrow(Number(edited));
            fresh[i] = after;
            odd |= (after & EXPONENT) == EXPONENT;
            changed += before != after;
        }
        if (odd) break;
        if (changed && values != nullptr) {
            const BITS* const old = reinterpret_cast<const BITS*>(block);
            progress[1] += keep(old, fresh, size, mask + start / 8, values + progress[1]);
        }
        progress[0] = start + size;
        if (changed && write) std::memcpy(block, fresh, std::size_t(size) * sizeof(BITS));
        total += changed;
    }
    return total;
}

}
