// Feeds the fuzz target a fixed number of mutations from a fixed seed.

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr uint32_t kSeed = 20260101;
constexpr int kRounds = 15000;

const std::vector<std::string>& Seeds() {
  static const auto* seeds = new std::vector<std::string>{
      R"({"model":{"path":"m","random_init":{"seed":3},"compute_type":"auto"},"device":"cuda:0"})",
      R"({"data":{"train":[{"path":"a","format":"chat"}],"eval":[],"max_length":2048,"packing":true}})",
      R"({"tuner":{"lora":{"rank":8,"alpha":16.5,"targets":["q_proj"],"rank_pattern":{"a.b":4}}}})",
      R"({"tuner":{"full":{}},"train":{"steps":40,"epochs":1e300,"learningRate":"NaN","seed":7}})",
      R"({"memory":{"policy":"all","layers":[{"first":0,"last":2147483647,"policy":"mlp"}]}})",
      "{}\x01train.steps=3\x01tuner.lora.rank_pattern[\"a=b\"]=4\x01"
      "data.train[0].path=x",
      "{}\x01tuner.lora={\"targets\":[\"a\"]}\x01tuner.lora.targets[0]=b\x01train.learning_rate="
      "nan",
  };
  return *seeds;
}

const std::vector<std::string>& Tokens() {
  static const auto* tokens = new std::vector<std::string>{
      "{",           "}",           "[",     "]",     "\"",  ":",
      ",",           "null",        "true",  "1e999", "-1",  "99999999999999999999",
      "\\u0000",     "\\ud800",     "\xff",  "\x01",  "=",   ".",
      "[0]",         "[\"",         "\"]",   "\n",    "0.5", "steps",
      "\"lora\":{}", "\"full\":{}", "train."};
  return *tokens;
}

std::string Mutate(std::string text, std::mt19937* random) {
  auto below = [&](size_t n) { return static_cast<size_t>((*random)() % n); };
  for (size_t edits = 1 + below(6); edits > 0; --edits) {
    const size_t at = below(text.size() + 1);
    switch (below(5)) {
      case 0:
        text.insert(at, Tokens()[below(Tokens().size())]);
        break;
      case 1:
        text.erase(at, 1 + below(8));
        break;
      case 2:
        if (at < text.size()) text[at] = static_cast<char>((*random)());
        break;
      case 3: {
        const std::string& other = Seeds()[below(Seeds().size())];
        text.insert(at, other.substr(below(other.size()), below(40)));
        break;
      }
      default:
        if (at < text.size()) text.insert(at, text.substr(at, below(30)));
    }
  }
  return text;
}

TEST(RunSpecFuzz, MutationsOfGoodSpecs) {
  std::mt19937 random(kSeed);
  RecordProperty("seed", static_cast<int>(kSeed));
  for (int round = 0; round < kRounds; ++round) {
    const std::string& seed = Seeds()[round % Seeds().size()];
    const std::string input =
        round < static_cast<int>(Seeds().size()) ? seed : Mutate(seed, &random);
    // A fault aborts in the target; the same input comes again under a debugger.
    EXPECT_EQ(LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size()),
              0);
  }
}

}  // namespace
