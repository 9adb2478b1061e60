// For each sample and channel, the sum over positions that a channel norm's weight gets its gradient from:
//
//     sums[n, c] = sum over p of  g[n, c, p] * (x[n, c, p] - mean[c]) / sqrt(variance[c] + epsilon)
//
// in one reading of both maps, be they kept channel by channel or position by position.

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace {

constexpr int64_t SHORT = 128;  // positions added in float; what they come to is added in double
constexpr int64_t BESIDE = 64;  // channels whose sums stay in registers together

struct Map {
    const float* data;
    int64_t sample, channel, position;  // strides, in elements
};

double channel_by_channel(const float* g, const float* x, float mean, int64_t positions) {
    double total = 0;
    for (int64_t start = 0; start < positions; start += SHORT) {
        const int64_t stop = std::min(start + SHORT, positions);
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t p = start; p < stop; ++p) part += g[p] * (x[p] - mean);
        total += part;
    }
    return total;
}

void position_by_position(double* sums, const Map& g, const Map& x, const float* mean, int64_t channels,
                          int64_t positions) {
    float means[BESIDE] = {};
    std::copy(mean, mean + channels, means);
    for (int64_t start = 0; start < positions; start += SHORT) {
        const int64_t stop = std::min(start + SHORT, positions);
        float parts[BESIDE] = {};
        for (int64_t p = start; p < stop; ++p) {
            const float *left = g.data + p * g.position, *right = x.data + p * x.position;
            if (channels == BESIDE)  // a known number, so that all of them stay in registers
                for (int64_t c = 0; c < BESIDE; ++c) parts[c] += left[c] * (right[c] - means[c]);
            else
                for (int64_t c = 0; c < channels; ++c) parts[c] += left[c] * (right[c] - means[c]);
        }
        for (int64_t c = 0; c < channels; ++c) sums[c] += parts[c];
    }
}

void some(double* sums, const Map& g, const Map& x, const float* mean, int64_t channels, int64_t positions) {
    if (g.position == 1 && x.position == 1)
        for (int64_t c = 0; c < channels; ++c)
            sums[c] = channel_by_channel(g.data + c * g.channel, x.data + c * x.channel, mean[c], positions);
    else
        position_by_position(sums, g, x, mean, channels, positions);
}

Map at(const Map& map, int64_t sample, int64_t channel) {
    return {map.data + sample * map.sample + channel * map.channel, map.sample, map.channel, map.position};
}

}  // namespace

// Either both maps have positions side by side, or both have channels side by side. Strides: sample, channel, position.
extern "C" void add(float* sums, const float* g, const int64_t* g_strides, const float* x, const int64_t* x_strides,
                    const float* mean, const float* variance, double epsilon, int64_t samples, int64_t channels,
                    int64_t positions, int64_t threads) {
    const Map left{g, g_strides[0], g_strides[1], g_strides[2]}, right{x, x_strides[0], x_strides[1], x_strides[2]};
    const int64_t blocks = (channels + BESIDE - 1) / BESIDE;
#pragma omp parallel for collapse(2) schedule(static) num_threads(static_cast<int>(threads))
    for (int64_t n = 0; n < samples; ++n)
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t c = b * BESIDE, count = std::min(BESIDE, channels - c);
            double found[BESIDE] = {};
            some(found, at(left, n, c), at(right, n, c), mean + c, count, positions);
            for (int64_t i = 0; i < count; ++i)
                sums[n * channels + c + i] = static_cast<float>(found[i] / std::sqrt(variance[c + i] + epsilon));
        }
}
