#include <gtest/gtest.h>

namespace {

// If this ever counts as passed, the suite has lost its ability to report a failure.
TEST(Canary, Fails) { EXPECT_EQ(1, 2) << "expected: this test must fail"; }

}  // namespace
