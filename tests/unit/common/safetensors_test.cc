#include "common/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/support/file_size_limit.h"

namespace lemo {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string File(const std::string& header, const std::string& data) {
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(header.size() >> (8 * i));
  return out + header + data;
}

struct Parsed {
  absl::Status status;
  std::map<std::string, TensorView> tensors;
  std::map<std::string, std::string> metadata;
};

Parsed Parse(const std::string& bytes) {
  Parsed parsed;
  parsed.status = ParseSafetensors(bytes, &parsed.tensors, &parsed.metadata);
  return parsed;
}

TEST(Safetensors, ReadsTensorsScalarsEmptyOnesAndMetadata) {
  const std::string bytes = File(R"({"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]},)"
                                 R"("a":{"shape":[],"data_offsets":[0,4],"dtype":"F32"},)"
                                 R"("e":{"dtype":"I64","shape":[3,0],"data_offsets":[8,8]},)"
                                 R"("__metadata__":{"format":"pt","":""}}   )",
                                 "abcdWXYZ");
  const Parsed parsed = Parse(bytes);
  ASSERT_TRUE(parsed.status.ok()) << parsed.status;
  ASSERT_EQ(parsed.tensors.size(), 3u);
  EXPECT_EQ(parsed.tensors.at("a").type, TensorType::kF32);
  EXPECT_EQ(parsed.tensors.at("a").bytes, "abcd");
  EXPECT_TRUE(parsed.tensors.at("a").shape.empty());
  EXPECT_EQ(parsed.tensors.at("b").type, TensorType::kBF16);
  EXPECT_EQ(parsed.tensors.at("b").shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(parsed.tensors.at("b").bytes, "WXYZ");
  EXPECT_EQ(parsed.tensors.at("e").bytes, "");
  EXPECT_EQ(parsed.metadata, (std::map<std::string, std::string>{{"", ""}, {"format", "pt"}}));
  EXPECT_TRUE(Parse(File("{}", "")).status.ok());
}

struct Bad {
  std::string name, bytes, message;
};

// One F32 tensor `t` of four bytes, with its fields replaced.
std::string One(const std::string& dtype, const std::string& shape, const std::string& offsets,
                size_t data = 4) {
  return File(
      R"({"t":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}",
      std::string(data, 'x'));
}

std::string Two(const std::string& first, const std::string& second, size_t data) {
  return File(R"({"t":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
                  R"(},"u":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}",
              std::string(data, 'x'));
}

std::string Length(uint64_t length, const std::string& rest) {
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(length >> (8 * i));
  return out + rest;
}

std::vector<Bad> BadFiles() {
  const std::string nested(100'000, '[');
  const std::string objects = [] {
    std::string out;
    for (int i = 0; i < 50'000; ++i) out += "{\"a\":";
    return out;
  }();
  const std::string deep_value = "{\"t\":{\"dtype\":\"F32\",\"shape\":" + nested;
  return {
      {"Empty", "", "too short"},
      {"SevenBytes", "1234567", "too short"},
      {"LengthBeyondFile", Length(100, "{}"), "truncated"},
      {"LengthBeyondLimit", Length(100'000'001, std::string(16, ' ')), "over the format's limit"},
      {"LengthAllOnes", Length(~uint64_t{0}, "{}"), "over the format's limit"},
      {"LengthSignBit", Length(uint64_t{1} << 63, "{}"), "over the format's limit"},
      {"LengthZero", Length(0, ""), "not JSON"},
      {"NotJson", File("hello", ""), "not JSON"},
      {"NotUtf8", File("{\"\xff\xfe\":1}", ""), "not JSON"},
      {"TrailingText", File("{} x", ""), "not JSON"},
      {"ZeroByte", File(std::string("{}\0}", 4), ""), "zero byte"},
      {"CutJson", File(R"({"t":{"dtype":"F32")", ""), "not JSON"},
      {"List", File("[]", ""), "not an object"},
      {"Number", File("5", ""), "not an object"},
      {"Null", File("null", ""), "not an object"},
      {"DeepLists", File(nested, ""), "not an object"},
      {"DeepObjects", File(objects, ""), "unknown key"},
      {"DeepShape", File(deep_value, ""), "a list"},
      {"TensorIsNumber", File(R"({"t":1})", ""), "a number"},
      {"TensorIsList", File(R"({"t":[1]})", ""), "a list"},
      {"MetadataNotStrings", File(R"({"__metadata__":{"a":1}})", ""), "a number"},
      {"MetadataNested", File(R"({"__metadata__":{"a":{}}})", ""), "an object"},
      {"MetadataTwice", File(R"({"__metadata__":{},"__metadata__":{}})", ""), "appears twice"},
      {"MetadataKeyTwice", File(R"({"__metadata__":{"a":"","a":""}})", ""), "twice"},
      {"UnknownKey", File(R"({"t":{"dtype":"U8","shape":[],"strides":[]}})", ""), "unknown key"},
      {"NoDtype", File(R"({"t":{"shape":[],"data_offsets":[0,4]}})", "xxxx"), "lacks"},
      {"NoShape", File(R"({"t":{"dtype":"F32","data_offsets":[0,4]}})", "xxxx"), "lacks"},
      {"NoOffsets", File(R"({"t":{"dtype":"F32","shape":[1]}})", "xxxx"), "lacks"},
      {"DtypeTwice",
       File(R"({"t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "xxxx"),
       "twice"},
      {"ShapeTwice",
       File(R"({"t":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})", "xxxx"),
       "twice"},
      {"TensorTwice",
       File(R"({"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
            R"("t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
            ""),
       "appears twice"},
      {"UnknownDtype", One("\"F8_E4M3\"", "[4]", "[0,4]"), "unknown dtype \"F8_E4M3\"; known: F64"},
      {"DtypeNumber", One("7", "[1]", "[0,4]"), "a number"},
      {"DtypeList", One("[]", "[1]", "[0,4]"), "a list"},
      {"ShapeString", One("\"F32\"", "\"1\"", "[0,4]"), "a string"},
      {"ShapeNegative", One("\"F32\"", "[-1]", "[0,4]"), "negative"},
      {"ShapeFraction", One("\"F32\"", "[1.0]", "[0,4]"), "fraction"},
      {"ShapeBool", One("\"F32\"", "[true]", "[0,4]"), "a boolean"},
      {"ShapeHuge", One("\"F32\"", "[18446744073709551615]", "[0,4]"), "out of range"},
      {"ShapeBeyond64Bits", One("\"F32\"", "[99999999999999999999]", "[0,4]"), "out of range"},
      {"ShapeOverflow", One("\"F32\"", "[4294967296,4294967296]", "[0,4]"), "overflows"},
      {"ShapeOverflowThenZero", One("\"F32\"", "[4294967296,4294967296,0]", "[0,0]", 0),
       "overflows"},
      {"ShapeTooLarge", One("\"F32\"", "[2]", "[0,4]"), "needs 8 bytes but has 4"},
      {"ShapeTooSmall", One("\"U8\"", "[3]", "[0,4]"), "needs 3 bytes but has 4"},
      {"OneOffset", One("\"F32\"", "[1]", "[0]"), "has 1 data_offsets"},
      {"ThreeOffsets", One("\"F32\"", "[1]", "[0,2,4]"), "has 3 data_offsets"},
      {"OffsetsReversed", One("\"F32\"", "[1]", "[4,0]"), "ends before that"},
      {"OffsetsBeyondFile", One("\"F32\"", "[2]", "[0,8]"), "holds 4 bytes"},
      {"OffsetsHuge", One("\"U8\"", "[4]", "[9223372036854775803,9223372036854775807]"),
       "holds 4 bytes"},
      {"Overlap", Two("[0,4]", "[2,6]", 6), "overlap"},
      {"SameBytes", Two("[0,4]", "[0,4]", 4), "overlap"},
      {"Hole", Two("[0,4]", "[5,9]", 9), "hole"},
      {"HoleAtTheStart", One("\"U8\"", "[4]", "[1,5]", 5), "hole"},
      {"DataLeftOver", One("\"F32\"", "[1]", "[0,4]", 5), "holds 5 bytes"},
      {"DataWithoutTensors", File("{}", "x"), "holds 1 bytes"},
  };
}

class SafetensorsBad : public testing::TestWithParam<Bad> {};

TEST_P(SafetensorsBad, IsRefusedWithItsReason) {
  Parsed parsed = Parse(GetParam().bytes);
  EXPECT_EQ(parsed.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(parsed.status.message()), HasSubstr(GetParam().message));
  EXPECT_LT(parsed.status.message().size(), 1000u);
  EXPECT_TRUE(parsed.tensors.empty());
  EXPECT_TRUE(parsed.metadata.empty());
}

INSTANTIATE_TEST_SUITE_P(All, SafetensorsBad, testing::ValuesIn(BadFiles()),
                         [](const auto& info) { return info.param.name; });

class SafetensorsFileTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    dir_ = fs::path(testing::TempDir()) /
           (std::string("safetensors_test.") + info->name() + "." + std::to_string(::getpid()));
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }
  fs::path dir_;
};

TEST_F(SafetensorsFileTest, FaultsNameTheFile) {
  const fs::path path = dir_ / "bad.safetensors";
  std::ofstream(path) << "short";
  const absl::Status status = SafetensorsFile::Open(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path.string()));
  EXPECT_EQ(SafetensorsFile::Open(dir_ / "absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(SafetensorsFile::Open(dir_).ok());
}

TEST_F(SafetensorsFileTest, WritesWhatItReads) {
  constexpr uint64_t kSeed = 20240611;
  std::mt19937_64 random(kSeed);
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  const std::vector<TensorType> types = {TensorType::kU8,  TensorType::kF64,  TensorType::kBF16,
                                         TensorType::kF32, TensorType::kBool, TensorType::kI64};
  for (int round = 0; round < 30; ++round) {
    std::map<std::string, std::string> data;
    std::map<std::string, TensorView> tensors;
    const size_t count = random() % 9;
    for (size_t i = 0; i < count; ++i) {
      const std::string name = "layer." + std::to_string(random() % 1000) + ".\"w\xc3\xa9\"";
      TensorView view{.type = types[random() % types.size()]};
      int64_t bytes = ElementBytes(view.type);
      for (size_t d = random() % 4; d > 0; --d) {
        view.shape.push_back(static_cast<int64_t>(random() % 5));
        bytes *= view.shape.back();
      }
      std::string& storage = data[name];
      storage.assign(static_cast<size_t>(bytes), '\0');
      for (char& byte : storage) byte = static_cast<char>(random());
      view.bytes = storage;
      tensors[name] = view;
    }
    const std::map<std::string, std::string> metadata = {{"format", "pt"}};
    const fs::path path = dir_ / "t.safetensors";
    ASSERT_TRUE(WriteSafetensors(path, tensors, metadata).ok());
    const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(file->metadata(), metadata);
    ASSERT_EQ(file->tensors().size(), tensors.size());
    for (const auto& [name, view] : tensors) {
      const TensorView& read = file->tensors().at(name);
      EXPECT_EQ(read.type, view.type);
      EXPECT_EQ(read.shape, view.shape);
      EXPECT_EQ(read.bytes, view.bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(read.bytes.data()) %
                    static_cast<uintptr_t>(ElementBytes(view.type)),
                0u)
          << name << " is not aligned";
    }
  }
}

TEST_F(SafetensorsFileTest, WriterRefusesWhatItCouldNotRead) {
  const fs::path path = dir_ / "t.safetensors";
  const auto write = [&path](const std::string& name, const TensorView& view,
                             const std::map<std::string, std::string>& metadata = {}) {
    return WriteSafetensors(path, {{name, view}}, metadata).code();
  };
  const TensorView good{TensorType::kU8, {2}, "ab"};
  EXPECT_EQ(write("t", {TensorType::kF32, {2}, "ab"}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(write("t", {TensorType::kU8, {-2}, "ab"}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(write("__metadata__", good), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(write("\xff", good), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(write("t", good, {{"k", "\xff"}}), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(fs::exists(path)) << "a refused file was begun";
  EXPECT_EQ(WriteSafetensors(dir_ / "absent" / "t", {{"t", good}}, {}).code(),
            absl::StatusCode::kNotFound);
}

TEST_F(SafetensorsFileTest, FullDisk) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const absl::Status status =
      WriteSafetensors("/dev/full", {{"t", {TensorType::kU8, {2}, "ab"}}}, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("/dev/full"));
}

TEST_F(SafetensorsFileTest, AnAtomicWriteThatFailsLeavesTheFormerFileAlone) {
  const fs::path path = dir_ / "t.safetensors";
  const std::vector<int32_t> former = {1, 2, 3}, longer(5000, 7);
  ASSERT_TRUE(WriteSafetensorsAtomic(path, {{"t", ListView(TensorType::kI32, former)}}, {}).ok());
  {
    const FileSizeLimit full(1000);
    EXPECT_FALSE(
        WriteSafetensorsAtomic(path, {{"t", ListView(TensorType::kI32, longer)}}, {}).ok());
  }
  const SafetensorsFile file = SafetensorsFile::Open(path).value();
  EXPECT_EQ(file.tensors().at("t").shape, std::vector<int64_t>{3});
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_), fs::directory_iterator()), 1)
      << "something is left beside it";
}

TEST_F(SafetensorsFileTest, ViewsSurviveAMove) {
  const fs::path path = dir_ / "t.safetensors";
  ASSERT_TRUE(WriteSafetensors(path, {{"t", {TensorType::kU8, {2}, "ab"}}}, {}).ok());
  SafetensorsFile file = SafetensorsFile::Open(path).value();
  const std::string_view view = file.tensors().at("t").bytes;
  const SafetensorsFile moved = std::move(file);
  EXPECT_EQ(view, "ab");
  EXPECT_EQ(moved.tensors().at("t").bytes.data(), view.data());
}

}  // namespace
}  // namespace lemo
