// Adds squares of per-sample sums of outer products, without ever storing such a sum in memory:
//
//     total[j, o] += sum over n of ( sum over pairs (p, q) of  x[n, q + offset(j)] * g[n, o, p] ) ^ 2
//
// and, where they are wanted, the absolute values of the same sums, and the sums themselves, to totals of their own.
//
// A small tile of (j, o) stays in registers while the pairs of a sample go by, is squared there, and stays while
// the next sample goes by. j runs over the elements of a window, o over output channels; which position p of the
// gradient meets which place q of the input is listed once per layer, so that strides, dilation, padding, any number
// of spatial dimensions and plain linear layers are all the same to this file.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 4;
#else
constexpr int LANES = 4, ROWS = 4;
#endif
constexpr int64_t WIDTH = 2 * LANES;   // o of a tile
constexpr int64_t LONG = 256;          // pairs between which a tile leaves the registers: what is read fits the cache
constexpr int64_t CACHED = 16384;      // floats of g of a run of samples that a tile's neighbours read again

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline vec load(const float* from) { return *reinterpret_cast<const unaligned*>(from); }
inline void store(float* to, vec value) { *reinterpret_cast<unaligned*>(to) = value; }

inline vec absolute(vec v) { return v < 0 ? -v : v; }

// Three totals of one layout; the last two are null where they are not wanted.
struct Totals {
    float *squares, *absolute, *sign;
    bool only_squares() const { return !absolute && !sign; }
    Totals at(int64_t place) const {
        return {squares + place, absolute ? absolute + place : nullptr, sign ? sign + place : nullptr};
    }
};

// A position of the gradient and the place of the input that it meets, the latter in elements.
struct IndexPair {
    int32_t position, place;
};
// Consecutive j, the pairs that they share, and the row of the total that the first of them adds to.
struct Section {
    int64_t first, length, first_pair, pairs, row;
};
struct Job {
    Totals total;            // each (rows, stride)
    int64_t stride, step;    // between two rows, and between those of consecutive j
    const int32_t* offsets;  // of each j, in elements of x
    const IndexPair* pairs;
    const float* g;          // packed: (block of WIDTH o, n, p, WIDTH)
    const float* x;
    int64_t x_stride, samples, positions;
};

template <int M>
inline void products(vec (&sum)[M][2], const float* g, const float* const (&x)[M], const IndexPair* pairs, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const float* row = g + pairs[i].position * WIDTH;
        const vec left = load(row), right = load(row + LANES);
        const int64_t place = pairs[i].place;
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const float element = x[m][place];
            sum[m][0] += element * left;
            sum[m][1] += element * right;
        }
    }
}

// Few pairs: a run of samples, squared and added in registers.
template <int M, bool ONLY_SQUARES>
void short_tile(Totals total, int64_t stride, const float* g, int64_t g_stride, const float* x, int64_t x_stride,
                const int32_t* offsets, const IndexPair* pairs, int64_t count, int64_t samples) {
    vec squares[M][2], absolutes[M][2], signs[M][2];
    for (int m = 0; m < M; ++m)
        for (int h = 0; h < 2; ++h) {
            const int64_t place = m * stride + h * LANES;
            squares[m][h] = load(total.squares + place);
            if constexpr (ONLY_SQUARES) continue;
            if (total.absolute) absolutes[m][h] = load(total.absolute + place);
            if (total.sign) signs[m][h] = load(total.sign + place);
        }
    for (int64_t n = 0; n < samples; ++n) {
        const float* in[M];
        vec sum[M][2];
        for (int m = 0; m < M; ++m) {
            in[m] = x + n * x_stride + offsets[m];
            sum[m][0] = sum[m][1] = vec{};
        }
        products<M>(sum, g + n * g_stride, in, pairs, count);
        for (int m = 0; m < M; ++m)
            for (int h = 0; h < 2; ++h) {
                squares[m][h] += sum[m][h] * sum[m][h];
                if constexpr (ONLY_SQUARES) continue;
                if (total.absolute) absolutes[m][h] += absolute(sum[m][h]);
                if (total.sign) signs[m][h] += sum[m][h];
            }
    }
    for (int m = 0; m < M; ++m)
        for (int h = 0; h < 2; ++h) {
            const int64_t place = m * stride + h * LANES;
            store(total.squares + place, squares[m][h]);
            if constexpr (ONLY_SQUARES) continue;
            if (total.absolute) store(total.absolute + place, absolutes[m][h]);
            if (total.sign) store(total.sign + place, signs[m][h]);
        }
}

// Many pairs: a part of one sample's; the sums wait in `sums` for the next part. Adding part by part also rounds less.
template <int M>
void long_tile(Totals total, int64_t stride, float* sums, const float* g, const float* x, const int32_t* offsets,
               const IndexPair* pairs, int64_t count, bool first, bool last) {
    const float* in[M];
    vec sum[M][2];
    for (int m = 0; m < M; ++m) {
        in[m] = x + offsets[m];
        sum[m][0] = sum[m][1] = vec{};
    }
    products<M>(sum, g, in, pairs, count);
    for (int m = 0; m < M; ++m)
        for (int h = 0; h < 2; ++h) {
            float* waiting = sums + m * WIDTH + h * LANES;
            const vec so_far = first ? sum[m][h] : load(waiting) + sum[m][h];
            if (!last) {
                store(waiting, so_far);
                continue;
            }
            const Totals to = total.at(m * stride + h * LANES);
            store(to.squares, load(to.squares) + so_far * so_far);
            if (to.absolute) store(to.absolute, load(to.absolute) + absolute(so_far));
            if (to.sign) store(to.sign, load(to.sign) + so_far);
        }
}

// Calls f with the number of rows of a tile, 1 to ROWS, as a constant.
template <int M = 1, typename F>
void with_rows(int64_t rows, F f) {
    if constexpr (M < ROWS)
        if (rows > M) return with_rows<M + 1>(rows, f);
    f(std::integral_constant<int, M>());
}

// Has the totals of a section brought near: the rows of one block lie far apart, where no pattern is seen.
void fetch(const Totals& total, const Section& s, int64_t stride) {
    for (const float* start : {total.squares, total.absolute, total.sign})
        for (int64_t j = 0; start && j < s.length; ++j)
            for (int64_t o = 0; o < WIDTH; o += 16) __builtin_prefetch(start + j * stride + o, 1);
}

void section(const Job& job, const Section& s, int64_t block, std::vector<float>& sums) {
    const int64_t panel = job.positions * WIDTH;
    const float* g = job.g + block * job.samples * panel;
    const Totals total = job.total.at(s.row * job.stride + block * WIDTH);
    fetch(total, s, job.step);
    const int32_t* offsets = job.offsets + s.first;
    const IndexPair* pairs = job.pairs + s.first_pair;
    if (s.pairs <= LONG) {
        const int64_t run = std::max<int64_t>(1, CACHED / panel);
        for (int64_t n = 0; n < job.samples; n += run)
            for (int64_t j = 0; j < s.length; j += ROWS)
                with_rows(std::min<int64_t>(ROWS, s.length - j), [&](auto rows) {
                    const auto tile = total.only_squares() ? short_tile<rows(), true> : short_tile<rows(), false>;
                    tile(total.at(j * job.step), job.step, g + n * panel, panel, job.x + n * job.x_stride,
                         job.x_stride, offsets + j, pairs, s.pairs, std::min(run, job.samples - n));
                });
        return;
    }
    sums.resize(s.length * WIDTH);
    for (int64_t n = 0; n < job.samples; ++n)
        for (int64_t i = 0; i < s.pairs; i += LONG)
            for (int64_t j = 0; j < s.length; j += ROWS)
                with_rows(std::min<int64_t>(ROWS, s.length - j), [&](auto rows) {
                    long_tile<rows()>(total.at(j * job.step), job.step, sums.data() + j * WIDTH, g + n * panel,
                                      job.x + n * job.x_stride, offsets + j, pairs + i, std::min(LONG, s.pairs - i),
                                      i == 0, i + LONG >= s.pairs);
                });
}

// Writes WIDTH channels of a sample side by side, position by position; zeros beside the last channel.
void pack(float* to, const float* g, int64_t o_stride, int64_t p_stride, int64_t channels, int64_t positions) {
    constexpr int64_t TOGETHER = 16;
    if (channels < WIDTH) std::memset(to, 0, sizeof(float) * WIDTH * positions);
    for (int64_t start = 0; start < positions; start += TOGETHER) {
        const int64_t stop = std::min(start + TOGETHER, positions);
        if (o_stride == 1) {
            for (int64_t p = start; p < stop; ++p)
                std::memcpy(to + p * WIDTH, g + p * p_stride, sizeof(float) * channels);
            continue;
        }
        for (int64_t o = 0; o < channels; ++o)
            for (int64_t p = start; p < stop; ++p) to[p * WIDTH + o] = g[o * o_stride + p * p_stride];
    }
}

void run(const Job& job, float* packed, const float* g, const int64_t* g_strides, int64_t channels,
         const Section* sections, int64_t count, int threads) {
    const int64_t blocks = (channels + WIDTH - 1) / WIDTH, panel = job.positions * WIDTH;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < blocks; ++b)
            for (int64_t n = 0; n < job.samples; ++n)
                pack(packed + (b * job.samples + n) * panel, g + n * g_strides[0] + b * WIDTH * g_strides[1],
                     g_strides[1], g_strides[2], std::min(WIDTH, channels - b * WIDTH), job.positions);
        std::vector<float> sums;
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < blocks; ++b)  // no two threads add to the same place: the sums do not depend on them
            for (int64_t s = 0; s < count; ++s) section(job, sections[s], b, sums);
    }
}

}  // namespace

extern "C" int64_t width() { return WIDTH; }

extern "C" void add(float* squares, float* absolute, float* sign, int64_t stride, int64_t step, const float* g,
                    const int64_t* g_strides, const float* x, int64_t x_stride, int64_t samples, int64_t channels,
                    int64_t positions, const int64_t* sections, int64_t count, const int32_t* offsets,
                    const int32_t* flat_pairs, float* packed, int64_t threads) {
    const auto* pairs = reinterpret_cast<const IndexPair*>(flat_pairs);
    const auto* parts = reinterpret_cast<const Section*>(sections);
    const Job job{{squares, absolute, sign}, stride, step * stride, offsets, pairs, packed, x, x_stride, samples, positions};
    run(job, packed, g, g_strides, channels, parts, count, static_cast<int>(threads));
}
