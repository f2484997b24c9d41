#include "worker/train/loop/budget_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace lemo::train {
namespace {

TEST(BudgetFile, IsANumberOfBytesOrNothing) {
  const std::filesystem::path path =
      std::filesystem::path(::testing::TempDir()) / ("lemo_budget_" + std::to_string(::getpid()));
  std::filesystem::remove(path);
  ASSERT_TRUE(ReadBudgetFile(path).ok());
  EXPECT_EQ(*ReadBudgetFile(path), std::nullopt);
  const auto write = [&path](const std::string& text) { std::ofstream(path) << text; };
  for (const char* text : {"123456789012", "123456789012\n", "  123456789012  \n"}) {
    write(text);
    ASSERT_TRUE(ReadBudgetFile(path).ok()) << text;
    EXPECT_EQ(*ReadBudgetFile(path), 123456789012);
  }
  for (const std::string& text :
       {std::string(), std::string("0"), std::string("-5"), std::string("2GiB"),
        std::string("12 34"), std::string(1000, '1')}) {
    write(text);
    EXPECT_TRUE(absl::IsInvalidArgument(ReadBudgetFile(path).status())) << text;
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace lemo::train
