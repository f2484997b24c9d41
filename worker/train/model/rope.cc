#include "worker/train/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lemo::train {
namespace {

// torch's fp32 `base ** exponents` is within half a unit of the exact value; so is this.
float Power(double base, float exponent) {
  return static_cast<float>(std::pow(static_cast<double>(static_cast<float>(base)), exponent));
}

// base ** (arange(0, head_dim, 2) / head_dim), all in fp32.
std::vector<float> Wavelengths(double base, int64_t head_dim) {
  std::vector<float> out(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = Power(base, static_cast<float>(2 * i) / static_cast<float>(head_dim));
  }
  return out;
}

std::vector<float> PlainFrequencies(double base, int64_t head_dim) {
  std::vector<float> out = Wavelengths(base, head_dim);
  for (float& value : out) value = 1.0f / value;
  return out;
}

double DynamicBase(const RopeConfig& config, int64_t head_dim, int64_t document_length) {
  const double power = static_cast<double>(head_dim) / static_cast<double>(head_dim - 2);
  if (document_length <= config.original_max_positions) return config.theta;
  // transformers holds the length in a tensor here, so each operation rounds to fp32 (the power's
  // exponent does not).
  const auto factor = static_cast<float>(config.factor);
  const float stretched = factor * static_cast<float>(document_length) /
                              static_cast<float>(config.original_max_positions) -
                          static_cast<float>(config.factor - 1.0);
  return static_cast<float>(config.theta) *
         static_cast<float>(std::pow(static_cast<double>(stretched), power));
}

std::vector<float> Llama3Frequencies(const RopeConfig& config, int64_t head_dim) {
  std::vector<float> out = PlainFrequencies(config.theta, head_dim);
  const auto factor = static_cast<float>(config.factor);
  const auto original = static_cast<double>(config.original_max_positions);
  const auto low_wavelength = static_cast<float>(original / config.low_freq_factor);
  const auto high_wavelength = static_cast<float>(original / config.high_freq_factor);
  const auto low = static_cast<float>(config.low_freq_factor);
  const auto span = static_cast<float>(config.high_freq_factor - config.low_freq_factor);
  for (float& value : out) {
    // A number divided by a tensor is that number times the reciprocal in torch.
    const float wavelength = 1.0f / value * static_cast<float>(2.0 * std::numbers::pi);
    if (wavelength < high_wavelength) continue;
    if (wavelength > low_wavelength) {
      value = value / factor;
      continue;
    }
    const float smooth = (1.0f / wavelength * static_cast<float>(original) - low) / span;
    value = (1.0f - smooth) * value / factor + smooth * value;
  }
  return out;
}

std::vector<float> YarnFrequencies(const RopeConfig& config, int64_t head_dim) {
  const auto dim = static_cast<double>(head_dim);
  // The (fractional) index of the frequency that turns `rotations` times over the original length.
  const auto index_of = [&](double rotations) {
    return dim *
           std::log(static_cast<double>(config.original_max_positions) /
                    (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(config.theta));
  };
  double low = index_of(config.beta_fast);
  double high = index_of(config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;

  std::vector<float> out = Wavelengths(config.theta, head_dim);
  for (size_t i = 0; i < out.size(); ++i) {
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float extrapolated_share = 1.0f - ramp;
    const float extrapolated = 1.0f / out[i];
    const float interpolated = 1.0f / (static_cast<float>(config.factor) * out[i]);
    out[i] = interpolated * (1.0f - extrapolated_share) + extrapolated * extrapolated_share;
  }
  return out;
}

double YarnScale(const RopeConfig& config) {
  if (config.attention_factor.has_value()) return *config.attention_factor;
  const auto scale = [&config](double mscale) {
    return config.factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(config.factor) + 1.0;
  };
  if (config.mscale.has_value() && config.mscale_all_dim.has_value()) {
    return scale(*config.mscale) / scale(*config.mscale_all_dim);
  }
  return scale(1.0);
}

template <typename Real>
void Fill(const RopeConfig& config, int64_t head_dim, std::span<const int32_t> positions,
          std::span<const int32_t> document_starts, Real* cos, Real* sin) {
  const int64_t half = head_dim / 2;
  RopeFrequencies frequencies = ComputeRopeFrequencies(config, head_dim, 0);
  for (size_t document = 0; document + 1 < document_starts.size(); ++document) {
    const int64_t begin = document_starts[document];
    const int64_t end = document_starts[document + 1];
    if (begin == end) continue;
    if (config.scaling == RopeConfig::Scaling::kDynamic) {
      const int64_t length =
          int64_t{*std::max_element(positions.begin() + begin, positions.begin() + end)} + 1;
      frequencies = ComputeRopeFrequencies(config, head_dim, length);
    }
    const auto scale = static_cast<Real>(frequencies.scale);
    for (int64_t row = begin; row < end; ++row) {
      const auto position = static_cast<Real>(positions[row]);
      for (int64_t i = 0; i < half; ++i) {
        const Real angle = position * static_cast<Real>(frequencies.inv_freq[i]);
        cos[row * half + i] = std::cos(angle) * scale;
        sin[row * half + i] = std::sin(angle) * scale;
      }
    }
  }
}

}  // namespace

RopeFrequencies ComputeRopeFrequencies(const RopeConfig& config, int64_t head_dim,
                                       int64_t document_length) {
  std::vector<float> values;
  RopeFrequencies out;
  switch (config.scaling) {
    case RopeConfig::Scaling::kNone:
      values = PlainFrequencies(config.theta, head_dim);
      break;
    case RopeConfig::Scaling::kLinear:
      values = PlainFrequencies(config.theta, head_dim);
      for (float& value : values) value /= static_cast<float>(config.factor);
      break;
    case RopeConfig::Scaling::kDynamic:
      values = PlainFrequencies(DynamicBase(config, head_dim, document_length), head_dim);
      break;
    case RopeConfig::Scaling::kLlama3:
      values = Llama3Frequencies(config, head_dim);
      break;
    case RopeConfig::Scaling::kYarn:
      values = YarnFrequencies(config, head_dim);
      out.scale = YarnScale(config);
      break;
  }
  out.inv_freq.assign(values.begin(), values.end());
  return out;
}

void FillRopeTables(const RopeConfig& config, int64_t head_dim, std::span<const int32_t> positions,
                    std::span<const int32_t> document_starts, float* cos, float* sin) {
  Fill(config, head_dim, positions, document_starts, cos, sin);
}

void FillRopeTables(const RopeConfig& config, int64_t head_dim, std::span<const int32_t> positions,
                    std::span<const int32_t> document_starts, double* cos, double* sin) {
  Fill(config, head_dim, positions, document_starts, cos, sin);
}

}  // namespace lemo::train
