#include "worker/train/publish/peft_pattern.h"

#include <gtest/gtest.h>

namespace lemo::train {
namespace {

constexpr const char* kModule = "model.layers.10.self_attn.q_proj";

TEST(PeftTarget, MatchesTheNameOrADottedSuffix) {
  EXPECT_TRUE(MatchesPeftTarget(kModule, kModule));
  EXPECT_TRUE(MatchesPeftTarget(kModule, "q_proj"));
  EXPECT_TRUE(MatchesPeftTarget(kModule, "self_attn.q_proj"));
  EXPECT_FALSE(MatchesPeftTarget(kModule, "proj"));
  EXPECT_FALSE(MatchesPeftTarget(kModule, "self_attn"));
  EXPECT_FALSE(MatchesPeftTarget(kModule, "*"));
}

TEST(PeftPattern, IsARegularExpressionOverADottedSuffix) {
  EXPECT_TRUE(MatchesPeftPattern(kModule, "q_proj"));
  EXPECT_TRUE(MatchesPeftPattern(kModule, "layers.10.self_attn.q_proj"));
  EXPECT_TRUE(MatchesPeftPattern(kModule, R"(layers\.\d+\..*(q|k)_proj)"));
  EXPECT_TRUE(MatchesPeftPattern(kModule, R"(^model\..*q_proj)"));
  EXPECT_TRUE(MatchesPeftPattern(kModule, "v_proj|q_proj"));
  EXPECT_FALSE(MatchesPeftPattern(kModule, "layers.1.self_attn.q_proj"));
  EXPECT_FALSE(MatchesPeftPattern(kModule, "proj"));
  EXPECT_FALSE(MatchesPeftPattern(kModule, "self_attn"));
}

TEST(PeftPattern, HostileKeysMatchNothingAndEndSoon) {
  EXPECT_FALSE(MatchesPeftPattern(kModule, "(q_proj"));
  EXPECT_FALSE(MatchesPeftPattern(kModule, "[z-a]"));
  EXPECT_FALSE(MatchesPeftPattern(kModule, std::string(100'000, '(')));
  EXPECT_FALSE(MatchesPeftPattern(kModule, std::string(250, '(')));
  EXPECT_FALSE(MatchesPeftPattern(kModule, "q_proj{1,100000}"));
  EXPECT_FALSE(MatchesPeftPattern(std::string(200, 'a'), "(a*)*(a*)*(a*)*b"));
}

}  // namespace
}  // namespace lemo::train
