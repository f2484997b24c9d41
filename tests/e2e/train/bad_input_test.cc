// What a person or a file gets wrong: one clear message with field, file, line and reason, exit 2,
// soon, and nothing written over.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <ostream>

#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

// What a fault may take, with the loading of libtorch, on a busy machine.
#if defined(__SANITIZE_ADDRESS__)
constexpr double kSoon = 20;
#else
constexpr double kSoon = 2;
#endif

struct Fault {
  std::string name;
  // Breaks the workspace or the spec.
  std::function<void(const Workspace&, json*)> make;
  // All of them are in the one message.
  std::vector<std::string> told;
  std::vector<std::string> args;
};

std::string SafetensorsBytes(uint64_t header_length, const std::string& header,
                             const std::string& data) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &header_length, 8);
  return bytes + header + data;
}

void BreakWeights(const Workspace& workspace, json* spec, const std::string& bytes) {
  workspace.CopyModel();
  workspace.Write("model/model.safetensors", bytes);
  (*spec)["model"]["path"] = "model";
}

void EditConfig(const Workspace& workspace, json* spec, const std::function<void(json&)>& edit) {
  const fs::path model = workspace.CopyModel();
  json config = json::parse(ReadAll(model / "config.json"));
  edit(config);
  workspace.Write("model/config.json", config.dump());
  (*spec)["model"]["path"] = "model";
}

std::vector<Fault> Faults() {
  std::vector<Fault> faults;
  const auto add = [&faults](std::string name, std::function<void(const Workspace&, json*)> make,
                             std::vector<std::string> told, std::vector<std::string> args = {}) {
    faults.push_back({std::move(name), std::move(make), std::move(told), std::move(args)});
  };
  // The model.
  add("NoModel", [](const Workspace&, json* s) { (*s)["model"]["path"] = "nowhere"; },
      {"model.path", "nowhere"});
  add("TruncatedSafetensors",
      [](const Workspace& w, json* s) {
        BreakWeights(w, s, ReadAll(Workspace::Model() / "model.safetensors").substr(0, 500'000));
      },
      {"model.path", "model/model.safetensors", "down_proj", "495136 bytes"});
  add("EmptySafetensors", [](const Workspace& w, json* s) { BreakWeights(w, s, ""); },
      {"model.path", "model/model.safetensors"});
  add("HostileHeaderLength",
      [](const Workspace& w, json* s) {
        BreakWeights(w, s, SafetensorsBytes(uint64_t{1} << 60, "{}", ""));
      },
      {"model.path", "model/model.safetensors", "header"});
  add("HostileOffsets",
      [](const Workspace& w, json* s) {
        const std::string header = R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},)"
                                   R"("b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}})";
        BreakWeights(w, s, SafetensorsBytes(header.size(), header, std::string(24, 'x')));
      },
      {"model.path", "model/model.safetensors", "overlap"});
  add("PickleInAHeadersPlace",
      [](const Workspace& w, json* s) { BreakWeights(w, s, std::string(4096, '\x80')); },
      {"model.path", "model/model.safetensors"});
  add("AbsentShard",
      [](const Workspace& w, json* s) {
        const fs::path model = w.CopyModel();
        fs::rename(model / "model.safetensors", model / "model-00001-of-00002.safetensors");
        const json index = {{"weight_map",
                             {{"model.norm.weight", "model-00001-of-00002.safetensors"},
                              {"model.embed_tokens.weight", "model-00002-of-00002.safetensors"}}}};
        w.Write("model/model.safetensors.index.json", index.dump());
        (*s)["model"]["path"] = "model";
      },
      {"model.path", "model-00002-of-00002.safetensors"});
  add("WeightsOfAnotherShape",
      [](const Workspace& w, json* s) {
        EditConfig(w, s, [](json& config) { config["intermediate_size"] = 180; });
      },
      {"model.path", "gate_proj", "180", "172"});
  add("MissingLayer",
      [](const Workspace& w, json* s) {
        EditConfig(w, s, [](json& config) { config["num_hidden_layers"] = 6; });
      },
      {"model.path", "model.layers.5.", "found nothing"});
  add("WrongArchitecture",
      [](const Workspace& w, json* s) {
        EditConfig(w, s, [](json& config) {
          config["architectures"] = {"BertForMaskedLM"};
          config["model_type"] = "bert";
        });
      },
      {"model.path", "config.json", "BertForMaskedLM", "LlamaForCausalLM"});
  add("ConfigIsNoJson",
      [](const Workspace& w, json* s) {
        w.CopyModel();
        w.Write("model/config.json", "{\"model_type\": ");
        (*s)["model"]["path"] = "model";
      },
      {"model.path", "config.json"});
  add("NoTokenizer",
      [](const Workspace& w, json* s) {
        fs::remove(w.CopyModel() / "tokenizer.json");
        (*s)["model"]["path"] = "model";
      },
      {"model.path", "tokenizer.json"});
  add("TokenizerBeyondTheEmbedding",
      [](const Workspace& w, json* s) {
        const fs::path model = w.CopyModel();
        json tokenizer = json::parse(ReadAll(model / "tokenizer.json"));
        tokenizer["added_tokens"].push_back({{"id", 512},
                                             {"content", "<extra>"},
                                             {"single_word", false},
                                             {"lstrip", false},
                                             {"rstrip", false},
                                             {"normalized", false},
                                             {"special", true}});
        w.Write("model/tokenizer.json", tokenizer.dump());
        w.Write("train.jsonl", "{\"text\": \"the girl\"}\n{\"text\": \"a <extra> ball\"}\n");
        (*s)["model"]["path"] = "model";
      },
      {"tokenizer", "512"});
  // The data.
  add("NoDataFile", [](const Workspace&, json* s) { (*s)["data"]["train"][0]["path"] = "none"; },
      {"data.train[0]", "none"});
  add("DataFileIsAFolder",
      [](const Workspace& w, json* s) {
        fs::create_directory(w.path() / "folder");
        (*s)["data"]["train"][0]["path"] = "folder";
      },
      {"data.train[0]", "folder"});
  add("EmptyFile", [](const Workspace& w, json*) { w.Write("train.jsonl", ""); },
      {"data.train[0]", "train.jsonl", "empty"});
  add("NotUtf8",
      [](const Workspace& w, json*) {
        w.Write("train.jsonl", "{\"text\": \"the girl\"}\n{\"text\": \"the \xff\xfe dog\"}\n");
      },
      {"train.jsonl:2", "UTF-8"});
  add("MixedFormats",
      [](const Workspace& w, json*) {
        w.Write("train.jsonl",
                "{\"text\": \"the girl\"}\n{\"text\": \"the dog\"}\n"
                "{\"prompt\": \"the\", \"completion\": \"cat\"}\n");
      },
      {"train.jsonl:3", "text"});
  add("BrokenJson",
      [](const Workspace& w, json*) {
        w.Write("train.jsonl", "{\"text\": \"the girl\"}\n{\"text\": \"the \n");
      },
      {"train.jsonl:2"});
  add("RowWithoutLabels",
      [](const Workspace& w, json* s) {
        w.Write("train.jsonl",
                "{\"prompt\": \"the\", \"completion\": \" cat\"}\n"
                "{\"prompt\": \"" +
                    std::string(200, 'a') + "\", \"completion\": \" cat\"}\n");
        (*s)["data"]["overlong"] = "truncate";
        (*s)["data"]["max_length"] = 16;
      },
      {"train.jsonl:2", "trained token"});
  add("OverlongRow", [](const Workspace&, json* s) { (*s)["data"]["max_length"] = 8; },
      {"train.jsonl:", "max_length", "8"});
  // The spec.
  add("MaxLengthZero", [](const Workspace&, json* s) { (*s)["data"]["max_length"] = 0; },
      {"data.max_length", "0"});
  add("MaxLengthAboveTheModels",
      [](const Workspace&, json* s) { (*s)["data"]["max_length"] = 513; },
      {"data.max_length", "513", "512"});
  add("SkippedPositionsAboveTheModels",
      [](const Workspace&, json* s) {
        (*s)["data"]["skip_positions"] = {{"target", 513}};
      },
      {"data.skip_positions.target", "513", "512"});
  add("UnknownTarget",
      [](const Workspace&, json* s) {
        (*s)["tuner"]["lora"]["targets"] = {"q_proj", "query"};
      },
      {"tuner.lora.targets[1]", "\"query\"", "q_proj, k_proj, v_proj, o_proj", "down_proj"});
  add("LearningRateNaN", [](const Workspace&, json* s) { (*s)["train"]["learning_rate"] = "NaN"; },
      {"train.learning_rate", "nan"});
  add("UnknownField", [](const Workspace&, json* s) { (*s)["train"]["learing_rate"] = 1; },
      {"train.learing_rate", "unknown field", "learning_rate"});
  add("WrongType", [](const Workspace&, json* s) { (*s)["train"]["steps"] = "many"; },
      {"train.steps", "many"});
  add("TwoFaultsAtOnce",
      [](const Workspace&, json* s) {
        (*s)["train"]["learning_rate"] = -1;
        (*s)["memory"]["policy"] = "everything";
      },
      {"train.learning_rate", "memory.policy", "everything", "attn_out"});
  add("TwoFaultsOfSpecAgainstModel",
      [](const Workspace&, json* s) {
        (*s)["data"]["max_length"] = 5000;
        (*s)["tuner"]["lora"]["targets"] = {"nothing"};
      },
      {"data.max_length", "tuner.lora.targets[0]"});
  add("UnknownSetField", [](const Workspace&, json*) {}, {"train.sed", "train.seed"},
      {"--set", "train.sed=3"});
  add("ResumeFromNowhere", [](const Workspace&, json*) {}, {"nowhere"}, {"--resume", "nowhere"});
  add("InitFromNowhere",
      [](const Workspace&, json* s) { (*s)["tuner"]["lora"]["init_from"] = "nowhere"; },
      {"tuner.lora.init_from", "nowhere"});
  // The output.
  add("OutputIsAFile", [](const Workspace& w, json*) { w.Write("out", "a person's"); },
      {"output.dir", "out"});
  add("OutputOfSomebodyElse",
      [](const Workspace& w, json*) { w.Write("out/report.json", "a person's"); },
      {"output.dir", "report.json"});
  add("NoPermission",
      [](const Workspace& w, json* s) {
        if (::geteuid() != 0) {
          fs::create_directory(w.path() / "locked");
          fs::permissions(w.path() / "locked", fs::perms::owner_read | fs::perms::owner_exec);
          (*s)["output"]["dir"] = "locked/run";
        } else {
          (*s)["output"]["dir"] = "/sys/lemo-run";  // which binds root, too
        }
      },
      {"output.dir", "run"});
  return faults;
}

void PrintTo(const Fault& fault, std::ostream* out) { *out << fault.name; }

class BadInput : public testing::TestWithParam<Fault> {};

TEST_P(BadInput, IsToldAndHarmsNothing) {
  const Fault& fault = GetParam();
  const Workspace workspace;
  json spec = Workspace::Spec();
  fault.make(workspace, &spec);
  workspace.Arguments(spec);  // writes run.json
  const auto before = workspace.Snapshot();
  const Outcome run = workspace.Run(spec, fault.args);
  EXPECT_EQ(run.exit_code, 2) << run.out << run.err;
  EXPECT_LT(run.seconds, kSoon);
  ASSERT_EQ(run.Of("error").size(), 1u) << run.out << run.err;
  const json error = run.events.back();
  EXPECT_EQ(error.at("type"), "error");
  EXPECT_EQ(error.at("exit_code"), 2);
  EXPECT_NE(error.at("advice"), "");
  for (const std::string& part : fault.told) {
    EXPECT_THAT(error.at("message").get<std::string>(), HasSubstr(part));
  }
  EXPECT_THAT(error.at("message").get<std::string>(), Not(HasSubstr("c10")));
  // As it was: no half-made output directory, either.
  EXPECT_EQ(workspace.Snapshot(), before);
}

INSTANTIATE_TEST_SUITE_P(All, BadInput, testing::ValuesIn(Faults()),
                         [](const auto& info) { return info.param.name; });

TEST(BadCommand, AMissingSpecAndUnknownFlags) {
  const Workspace workspace;
  const auto expect = [&](const std::vector<std::string>& args, const std::string& told) {
    const Outcome run = workspace.RunPlain(args);
    EXPECT_EQ(run.exit_code, 2) << run.out << run.err;
    EXPECT_THAT(run.out + run.err, HasSubstr(told));
    EXPECT_LT(run.seconds, kSoon);
  };
  workspace.Write("run.json", Workspace::Spec().dump());
  workspace.Write("broken.json", "{\n \"model\": {\"path\": }}");
  expect({"none.json"}, "error: none.json: cannot open none.json: No such file or directory\nWhat");
  expect({"none.json", "--events", "json"}, "none.json");
  expect({"broken.json"}, "broken.json:2");
  expect({"run.json", "--resum", "auto"}, "--resume");
  expect({"run.json", "--events", "xml"}, "--events");
  expect({"run.json", "--events", "fd:77"}, "77");
  expect({}, "run.json");
  expect({"run.json", "--preview-data", "0"}, "--preview-data");
  EXPECT_FALSE(fs::exists(workspace.path() / "out"));
}

TEST(BadOutput, AnotherRunsAndAFinishedRunsDirectoryAreKept) {
  const Workspace workspace;
  json spec = Workspace::Spec();
  ASSERT_EQ(workspace.Run(spec).exit_code, 0);
  const auto before = workspace.Snapshot();
  const auto expect_kept = [&](const Outcome& run, const std::vector<std::string>& told) {
    EXPECT_EQ(run.exit_code, 2) << run.out << run.err;
    EXPECT_LT(run.seconds, kSoon);
    for (const std::string& part : told) EXPECT_THAT(run.out, HasSubstr(part));
    auto after = workspace.Snapshot();
    for (const auto& [name, hash] : before) {
      if (name == "run.json" || name == "out/.lemo.lock") continue;
      EXPECT_EQ(after[name], hash) << name;
    }
  };
  expect_kept(workspace.Run(spec), {"output.dir", "finished"});
  spec["train"]["seed"] = 8;
  for (const std::vector<std::string>& args :
       {std::vector<std::string>{}, std::vector<std::string>{"--resume", "auto"}}) {
    expect_kept(workspace.Run(spec, args), {"output.dir", "another run", "train.seed is 7"});
  }
}

// A run that was refused for its data leaves nothing that stands in the way of the mended one, even
// where it could not clear up because it was killed.
TEST(BadOutput, AMendedRunMayHaveTheDirectory) {
  const Workspace workspace;
  const std::string good = ReadAll(workspace.path() / "train.jsonl");
  workspace.Write("train.jsonl", good + "{\"text\": 3}\n");
  fs::create_directory(workspace.path() / "out");
  workspace.Write("out/notes.txt", "a person's");
  EXPECT_EQ(workspace.Run(Workspace::Spec()).exit_code, 2);
  EXPECT_EQ(ReadAll(workspace.path() / "out/notes.txt"), "a person's");
  workspace.Write("train.jsonl", good);
  json spec = Workspace::Spec();
  {
    json other = spec;
    other["train"]["seed"] = 99;
    Process killed(Workspace::Program(), workspace.Arguments(other),
                   {.directory = workspace.path()});
    while (const auto line = killed.NextLine(Process::Clock::now() + std::chrono::minutes(1))) {
      if (json::parse(*line).at("type") == "eval") break;
    }
  }
  EXPECT_TRUE(fs::exists(workspace.path() / "out/run_identity.json"));
  const Outcome run = workspace.Run(spec);
  EXPECT_EQ(run.exit_code, 0) << run.out;
  EXPECT_EQ(ReadAll(workspace.path() / "out/notes.txt"), "a person's");
}

TEST(BadOutput, AFullDiskIsSaidWithThePath) {
  const Workspace workspace;
  json spec = Workspace::Spec();
  spec["checkpoint"] = {{"every_steps", 2}};
  // From the lock over the cache and the checkpoint to the adapter and the report.
  int number = 0;
  for (const uint64_t bytes : {0, 500, 3000, 12'000, 30'000}) {
    spec["output"]["dir"] = "out" + std::to_string(number++);
    workspace.Arguments(spec);
    const Outcome run = workspace.Run(spec, {}, {.file_size_limit = bytes});
    EXPECT_EQ(run.exit_code, 2) << bytes << "\n" << run.out << run.err;
    const std::string message = run.Last("error").value("message", "");
    EXPECT_THAT(message, HasSubstr(spec["output"]["dir"].get<std::string>())) << bytes;
    // With room again it goes through, from where it was.
    const Outcome again = workspace.Run(spec, {"--resume", "auto"});
    EXPECT_EQ(again.exit_code, 0) << bytes << "\n" << again.out << again.err;
  }
}

}  // namespace
}  // namespace lemo::train
