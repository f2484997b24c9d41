#include "worker/train/model/weights.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/safetensors.h"
#include "nlohmann/json.hpp"
#include "worker/train/model/family/family.h"
#include "worker/train/model/tensor_view.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// Of RandomWeights, worked out by another program: element 0 of kQ1, the last of a 40,000-entry
// embedding.
constexpr float kFirst = 0x1.0f6cccp-4f;
constexpr float kLast = 0x1.72799ap-5f;
constexpr char kQ1[] = "model.layers.1.self_attn.q_proj.weight";

nlohmann::json TinyJson() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"hidden_size", 8},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 2},
          {"intermediate_size", 12},
          {"vocab_size", 10},
          {"initializer_range", 0.05}};
}

class WeightsTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    dir_ = fs::path(testing::TempDir()) /
           (std::string("weights_test.") + info->name() + "." + std::to_string(::getpid()));
    fs::create_directories(dir_);
    std::ofstream(dir_ / "config.json") << TinyJson();
    config_ = ParseDecoderConfig(TinyJson()).value();
    tensors_ = RandomWeights(config_, 3, at::kFloat, at::kCPU).tensors();
  }
  void TearDown() override { fs::remove_all(dir_); }

  void Write(const ModelWeights::Map& tensors, const std::string& name = "model.safetensors") {
    std::map<std::string, TensorView> views;
    for (const auto& [key, tensor] : tensors) views[key] = AsView(tensor);
    ASSERT_TRUE(WriteSafetensors(dir_ / name, views, {{"format", "pt"}}).ok());
  }

  absl::StatusOr<ModelWeights> Load(at::ScalarType type = at::kFloat) {
    return LoadWeights(dir_, config_, type, at::kCPU);
  }

  std::string Fault() {
    const auto loaded = Load();
    return loaded.ok() ? "was accepted" : std::string(loaded.status().message());
  }

  // Two shards; the index maps every tensor, changed by `edit`.
  void WriteShards(const std::map<std::string, std::string>& edit = {}) {
    ModelWeights::Map first, second;
    nlohmann::json map;
    for (const auto& [name, tensor] : tensors_) {
      const bool later = name.find("layers.1") != std::string::npos;
      (later ? second : first)[name] = tensor;
      map[name] = later ? "model-00002-of-00002.safetensors" : "model-00001-of-00002.safetensors";
    }
    for (const auto& [name, file] : edit) map[name] = file;
    Write(first, "model-00001-of-00002.safetensors");
    Write(second, "model-00002-of-00002.safetensors");
    std::ofstream(dir_ / "model.safetensors.index.json")
        << nlohmann::json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}};
  }

  fs::path dir_;
  DecoderConfig config_;
  ModelWeights::Map tensors_;
};

TEST_F(WeightsTest, SameTypeIsMappedWithoutACopyAndOutlivesTheObject) {
  Write(tensors_);
  at::Tensor kept;
  {
    const ModelWeights weights = Load().value();
    EXPECT_EQ(weights.tensors().size(), tensors_.size());
    int64_t bytes = 0;
    for (const auto& [name, tensor] : tensors_) {
      EXPECT_TRUE(at::equal(weights.at(name), tensor)) << name;
      EXPECT_FALSE(weights.at(name).requires_grad());
      bytes += static_cast<int64_t>(tensor.nbytes());
    }
    EXPECT_EQ(weights.MappedBytes(), bytes);
    EXPECT_EQ(weights.OwnedBytes(), 0);
    EXPECT_THAT(weights.warnings(), IsEmpty());
    kept = weights.at(kQ1);
  }
  EXPECT_TRUE(at::equal(kept, tensors_.at(kQ1)));
}

TEST_F(WeightsTest, ConvertsBetweenTheThreeTypes) {
  for (const at::ScalarType stored : {at::kFloat, at::kBFloat16, at::kHalf}) {
    ModelWeights::Map written;
    for (const auto& [name, tensor] : tensors_) written[name] = tensor.to(stored);
    Write(written);
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
      const ModelWeights weights = Load(type).value();
      EXPECT_EQ(weights.type(), type);
      EXPECT_EQ(weights.OwnedBytes() == 0, type == stored);
      EXPECT_EQ(weights.MappedBytes() == 0, type != stored);
      for (const auto& [name, tensor] : written) {
        ASSERT_EQ(weights.at(name).scalar_type(), type);
        ASSERT_TRUE(at::equal(weights.at(name), tensor.to(type))) << name;
      }
    }
  }
}

TEST_F(WeightsTest, TensorsAtOddAddressesAreCopied) {
  Write(tensors_);
  std::string bytes;
  {
    std::ifstream in(dir_ / "model.safetensors", std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  // One more byte of header, as a writer without alignment could leave it.
  bytes.insert(
      8 + static_cast<unsigned char>(bytes[0]) + 256u * static_cast<unsigned char>(bytes[1]), " ");
  if (++bytes[0] == 0) ++bytes[1];
  std::ofstream(dir_ / "model.safetensors", std::ios::binary) << bytes;
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const ModelWeights weights = Load(type).value();
    EXPECT_EQ(weights.MappedBytes(), 0);
    EXPECT_TRUE(at::equal(weights.at(kQ1), tensors_.at(kQ1).to(type)));
  }
}

// What runs share has the values and the alignment of what each would have for itself.
TEST_F(WeightsTest, SharedBasesHaveTheSameBits) {
  ModelWeights::Map written;
  for (const auto& [name, tensor] : tensors_) {
    written[name] = name == kQ1 ? tensor : tensor.to(at::kBFloat16);  // one is used as it lies
  }
  Write(written);
  const auto bases = MakeFileBases(dir_ / "bases");
  const BaseSharing sharing{bases.get(), "digest"};
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const ModelWeights own = Load(type).value();
    const ModelWeights first =
        LoadWeights(dir_, config_, type, at::kCPU, nullptr, &sharing).value();
    const ModelWeights second =
        LoadWeights(dir_, config_, type, at::kCPU, nullptr, &sharing).value();
    EXPECT_EQ(first.OwnedBytes(), 0);
    EXPECT_EQ(first.MappedBytes(), own.OwnedBytes() + own.MappedBytes());
    for (const auto& [name, tensor] : own.tensors()) {
      SCOPED_TRACE(name);
      for (const ModelWeights* weights : {&first, &second}) {
        const at::Tensor& shared = weights->at(name);
        ASSERT_EQ(shared.scalar_type(), type);
        EXPECT_TRUE(shared.is_contiguous());
        EXPECT_TRUE(at::equal(shared, tensor));
        const bool in_place = written.at(name).scalar_type() == type;
        const auto address = reinterpret_cast<uintptr_t>(shared.const_data_ptr());
        if (!in_place) {
          EXPECT_EQ(address % kBaseAlignment, 0u);
        }
      }
    }
  }
  int files = 0;
  for (const auto& entry : fs::directory_iterator(dir_ / "bases")) {
    files += entry.path().extension() == ".shared";
  }
  EXPECT_EQ(files, 3) << "float32, float64, and what is float32 in the file as bfloat16";
}

// What a device's memory goes through, with memory of the host that has a descriptor and no name.
TEST_F(WeightsTest, BasesThatAreHandedOnHaveTheSameBits) {
  ModelWeights::Map written;
  for (const auto& [name, tensor] : tensors_) written[name] = tensor.to(at::kBFloat16);
  Write(written);
  int made = 0, opened = 0;
  const auto mapped = [](int fd, int64_t bytes) -> DescribedMemory {
    void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return {.data = std::shared_ptr<void>(data, [bytes](void* p) { ::munmap(p, bytes); }),
            .describe = [fd]() -> absl::StatusOr<Descriptor> { return Descriptor(fd); }};
  };
  const auto bases = MakeHandedBases(
      dir_ / "handed",
      {.place = "host",
       .make = [&](int64_t bytes) -> absl::StatusOr<DescribedMemory> {
         ++made;
         const int fd = ::memfd_create("base", MFD_CLOEXEC);
         EXPECT_EQ(::ftruncate(fd, bytes), 0);
         return mapped(fd, bytes);
       },
       .open = [&](int64_t bytes, int descriptor) -> absl::StatusOr<DescribedMemory> {
         ++opened;
         return mapped(descriptor, bytes);
       }});
  const BaseSharing sharing{bases.get(), "digest"};
  const auto load = [&] {
    return LoadWeights(dir_, config_, at::kFloat, at::kCPU, nullptr, &sharing).value();
  };
  const ModelWeights own = Load(at::kFloat).value();
  std::optional<ModelWeights> first = load();
  std::optional<ModelWeights> second = load();
  EXPECT_EQ(made, 1);
  EXPECT_EQ(opened, 1);
  for (const auto& [name, tensor] : own.tensors()) {
    EXPECT_TRUE(at::equal(first->at(name), tensor)) << name;
    EXPECT_TRUE(at::equal(second->at(name), tensor)) << name;
  }
  // As long as one tensor of it is used, others find it.
  const at::Tensor last = second->at(kQ1);
  first.reset();
  second.reset();
  EXPECT_TRUE(at::equal(load().at(kQ1), last));
  EXPECT_EQ(made, 1);
  EXPECT_EQ(opened, 2);
}

TEST_F(WeightsTest, BasesOfOneDigestAndAnotherAreApart) {
  ModelWeights::Map written;
  for (const auto& [name, tensor] : tensors_) written[name] = tensor.to(at::kBFloat16);
  Write(written);
  const auto bases = MakeFileBases(dir_ / "bases");
  const BaseSharing one{bases.get(), "one"}, other{bases.get(), "other"};
  ASSERT_TRUE(LoadWeights(dir_, config_, at::kFloat, at::kCPU, nullptr, &one).ok());
  for (auto& [name, tensor] : written) tensor = tensor.neg();
  Write(written);
  const ModelWeights loaded =
      LoadWeights(dir_, config_, at::kFloat, at::kCPU, nullptr, &other).value();
  EXPECT_TRUE(at::equal(loaded.at(kQ1), written.at(kQ1).to(at::kFloat)));
  std::set<std::string> ids;
  for (const char* digest : {"a", "b"}) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      for (const auto& [rank, ranks] : {std::pair{0, 1}, std::pair{0, 2}, std::pair{1, 2}}) {
        ids.insert(BaseKey{digest, type, rank, ranks}.Id());
      }
    }
  }
  EXPECT_EQ(ids.size(), 12u);
}

TEST_F(WeightsTest, ATensorGroupSharesItsPartsWithOtherRuns) {
  ModelWeights::Map written;
  for (const auto& [name, tensor] : tensors_) written[name] = tensor.to(at::kBFloat16);
  Write(written);
  const auto bases = MakeFileBases(dir_ / "bases");
  const BaseSharing sharing{bases.get(), "digest"};
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (int rank = 0; rank < 2; ++rank) {
      const ModelSplit split = ModelSplit::Make(config_, rank, 2).value();
      const ModelWeights own = LoadWeights(dir_, config_, type, at::kCPU, &split).value();
      const ModelWeights shared =
          LoadWeights(dir_, config_, type, at::kCPU, &split, &sharing).value();
      EXPECT_EQ(shared.OwnedBytes(), 0);
      EXPECT_EQ(shared.MappedBytes(), own.OwnedBytes() + own.MappedBytes());
      for (const auto& [name, tensor] : own.tensors()) {
        EXPECT_TRUE(at::equal(shared.at(name), tensor)) << name << " of rank " << rank;
      }
    }
  }
}

TEST_F(WeightsTest, Shards) {
  WriteShards();
  const ModelWeights weights = Load().value();
  for (const auto& [name, tensor] : tensors_) EXPECT_TRUE(at::equal(weights.at(name), tensor));
  EXPECT_EQ(weights.OwnedBytes(), 0);
}

TEST_F(WeightsTest, BadIndexes) {
  WriteShards({{kQ1, "model-00001-of-00002.safetensors"}});
  EXPECT_THAT(Fault(), AllOf(HasSubstr(kQ1), HasSubstr("found nothing in model-00001")));
  for (const char* file :
       {"../model-00001-of-00002.safetensors", "/etc/passwd", "weights.bin", ""}) {
    WriteShards({{kQ1, file}});
    EXPECT_THAT(Fault(), AllOf(HasSubstr(kQ1), HasSubstr("not a .safetensors file name")));
  }
  WriteShards({{kQ1, "a.safetensors"}, {"x", "b.safetensors"}});
  EXPECT_THAT(Fault(), AllOf(HasSubstr("a.safetensors: does not exist"),
                             HasSubstr("b.safetensors: does not exist")));
  for (const char* text : {"", "[]", "{}", "{\"weight_map\": {}}", "{\"weight_map\": []}"}) {
    std::ofstream(dir_ / "model.safetensors.index.json") << text;
    EXPECT_THAT(Fault(), HasSubstr("model.safetensors.index.json"));
  }
}

TEST_F(WeightsTest, OneErrorListsAllThatDoesNotFit) {
  ModelWeights::Map broken = tensors_;
  broken.erase("model.norm.weight");
  broken.erase("lm_head.weight");
  broken[kQ1] = at::zeros({8, 9});
  broken["model.embed_tokens.weight"] = at::zeros({10, 8}, at::kLong);
  broken["norm.weight"] = at::zeros({8});
  Write(broken);
  const auto loaded = Load();
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(loaded.status().message());
  EXPECT_THAT(message, HasSubstr(dir_.string()));
  EXPECT_THAT(message, HasSubstr("LlamaForCausalLM"));
  EXPECT_THAT(message, HasSubstr("model.norm.weight: expected [8], found nothing"));
  EXPECT_THAT(message, HasSubstr("lm_head.weight: expected [10, 8], found nothing"));
  EXPECT_THAT(message, HasSubstr(std::string(kQ1) +
                                 ": model.safetensors: expected [8, 8] of F32, BF16 or F16, found "
                                 "[8, 9] of F32"));
  EXPECT_THAT(message, HasSubstr("found [10, 8] of I64"));
  EXPECT_THAT(message, HasSubstr("found but not expected: norm.weight"));
}

TEST_F(WeightsTest, WhatHasNoPlaceIsNamedUnlessHarmless) {
  ModelWeights::Map more = tensors_;
  more["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::zeros({2});
  more["model.layers.2.mlp.up_proj.weight"] = at::zeros({2});
  Write(more);
  EXPECT_THAT(Load()->warnings(), ElementsAre(HasSubstr("model.layers.2.mlp.up_proj.weight")));
}

TEST_F(WeightsTest, TiedHeads) {
  config_.tied_embeddings = true;
  ModelWeights::Map tied = tensors_;
  tied["lm_head.weight"] = tied["model.embed_tokens.weight"];
  Write(tied);
  ModelWeights weights = Load().value();
  EXPECT_THAT(weights.tensors(), Not(Contains(testing::Key("lm_head.weight"))));
  EXPECT_THAT(weights.warnings(), IsEmpty());
  Write(tensors_);
  EXPECT_THAT(Load()->warnings(), ElementsAre(HasSubstr("lm_head.weight differs")));
  tied.erase("lm_head.weight");
  Write(tied);
  EXPECT_TRUE(Load().ok());
  EXPECT_THROW(Load()->at("lm_head.weight"), std::out_of_range);
}

// Meta's OPT on the hub: names without `model.`, a version number among them, and a tied head.
TEST_F(WeightsTest, FilesSavedWithoutTheHead) {
  config_ = ParseDecoderConfig({{"architectures", {"OPTForCausalLM"}},
                                {"hidden_size", 8},
                                {"num_hidden_layers", 2},
                                {"num_attention_heads", 2},
                                {"ffn_dim", 12},
                                {"vocab_size", 10}})
                .value();
  const ModelWeights made = RandomWeights(config_, 3, at::kFloat, at::kCPU);
  ModelWeights::Map stripped = {{"decoder.version", at::zeros({1})}};
  for (const auto& [name, tensor] : made.tensors()) {
    stripped[name.substr(std::string("model.").size())] = tensor;
  }
  Write(stripped);
  const auto loaded = Load();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_THAT(loaded->warnings(), IsEmpty());
  ASSERT_EQ(loaded->tensors().size(), made.tensors().size());
  for (const auto& [name, tensor] : made.tensors()) {
    EXPECT_TRUE(at::equal(loaded->at(name), tensor)) << name;
  }
  // Positions too are drawn; norms start as the identity.
  EXPECT_GT(made.at("model.decoder.embed_positions.weight").abs().max().item<double>(), 0.0);
  EXPECT_TRUE(at::equal(made.at("model.decoder.layers.1.final_layer_norm.weight"), at::ones({8})));
  EXPECT_TRUE(at::equal(made.at("model.decoder.final_layer_norm.bias"), at::zeros({8})));
}

TEST_F(WeightsTest, NoPickles) {
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kNotFound);
  std::ofstream(dir_ / "pytorch_model.bin") << "cpickle";
  std::ofstream(dir_ / "adapter_model.safetensors") << "x";
  EXPECT_THAT(Fault(), AllOf(HasSubstr("pytorch_model.bin"), HasSubstr("never read"),
                             HasSubstr("adapter_model.safetensors")));
}

TEST_F(WeightsTest, TruncatedFile) {
  Write(tensors_);
  fs::resize_file(dir_ / "model.safetensors", fs::file_size(dir_ / "model.safetensors") - 4);
  EXPECT_THAT(Fault(), HasSubstr((dir_ / "model.safetensors").string()));
  fs::resize_file(dir_ / "model.safetensors", 20);
  EXPECT_THAT(Fault(), HasSubstr("truncated"));
}

TEST_F(WeightsTest, RandomWeightsDependOnSeedAndNameOnly) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  config_.vocabulary = 40'000;
  const ModelWeights one = RandomWeights(config_, 3, at::kFloat, at::kCPU);
  at::set_num_threads(2);
  const ModelWeights two = RandomWeights(config_, 3, at::kFloat, at::kCPU);
  at::set_num_threads(threads);
  const ModelWeights half = RandomWeights(config_, 3, at::kBFloat16, at::kCPU);
  const ModelWeights other = RandomWeights(config_, 4, at::kFloat, at::kCPU);
  for (const auto& [name, tensor] : one.tensors()) {
    EXPECT_TRUE(at::equal(tensor, two.at(name)));
    EXPECT_TRUE(at::equal(tensor.to(at::kBFloat16), half.at(name)));
  }
  EXPECT_FALSE(at::equal(one.at(kQ1), other.at(kQ1)));
  EXPECT_FALSE(at::equal(one.at(kQ1), one.at("model.layers.0.self_attn.q_proj.weight")));
  EXPECT_TRUE(at::equal(one.at("model.norm.weight"), at::ones({8})));
  EXPECT_EQ(one.MappedBytes(), 0);

  // Values of one machine, for all others.
  EXPECT_EQ(one.at(kQ1)[0][0].item<float>(), kFirst);
  EXPECT_EQ(one.at("model.embed_tokens.weight")[39'999][7].item<float>(), kLast);

  // 320,000 values: three standard errors of mean, deviation and kurtosis (of twelve
  // uniforms: 2.9).
  const at::Tensor values = one.at("model.embed_tokens.weight").to(at::kDouble) / 0.05;
  EXPECT_NEAR(values.mean().item<double>(), 0.0, 3 * 0.0018);
  EXPECT_NEAR(values.std().item<double>(), 1.0, 3 * 0.00125);
  EXPECT_NEAR(values.pow(4).mean().item<double>(), 2.9, 3 * 0.017);
}

TEST_F(WeightsTest, BiasesStartAtZero) {
  config_.qkv_bias = true;
  const ModelWeights weights = RandomWeights(config_, 1, at::kFloat, at::kCPU);
  EXPECT_TRUE(at::equal(weights.at("model.layers.0.self_attn.q_proj.bias"), at::zeros({8})));
}

TEST_F(WeightsTest, FingerprintSeesLayoutAndConfig) {
  Write(tensors_);
  const std::string first = WeightsFingerprint(dir_).value();
  EXPECT_EQ(first.size(), 64u);
  EXPECT_EQ(first, WeightsFingerprint(dir_).value());
  ModelWeights::Map changed = tensors_;
  changed["model.norm.weight"] = at::zeros({8}, at::kBFloat16);
  Write(changed);
  EXPECT_NE(first, WeightsFingerprint(dir_).value());
  Write(tensors_);
  EXPECT_EQ(first, WeightsFingerprint(dir_).value());
  std::ofstream(dir_ / "config.json", std::ios::app) << " ";
  EXPECT_NE(first, WeightsFingerprint(dir_).value());
  fs::remove(dir_ / "model.safetensors");
  EXPECT_FALSE(WeightsFingerprint(dir_).ok());
}

TEST(LoadWeights, RealModel) {
  const fs::path dir = LEMO_SOURCE_DIR "/tests/fixtures/stories260k";
  const DecoderConfig config = LoadDecoderConfig(dir).value();
  const auto weights = LoadWeights(dir, config, at::kFloat, at::kCPU);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_THAT(weights->warnings(), IsEmpty());
  EXPECT_EQ(weights->MappedBytes() / 4, 260'032);
}

}  // namespace
}  // namespace lemo::train
