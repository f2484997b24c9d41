#include "tests/e2e/train/workspace.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <random>
#include <sstream>
#include <utility>

#include "common/files.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::minutes kPatience{4};

std::string Rows(unsigned seed, int count, int words_least, int words_most) {
  static const std::vector<std::string> words = {
      "the",  "little", "girl", "had",  "a",   "big",  "red", "ball", "and", "she",
      "play", "with",   "in",   "park", "one", "day",  "her", "mom",  "let", "home",
      "said", "go",     "now",  "sun",  "dog", "very", "was", "tree", "saw", "happy"};
  std::mt19937 random(seed);
  std::string text;
  for (int row = 0; row < count; ++row) {
    const unsigned length = words_least + random() % (words_most - words_least + 1);
    std::string sentence;
    for (unsigned i = 0; i < length; ++i) {
      sentence += (i == 0 ? "" : " ") + words[random() % words.size()];
    }
    text += nlohmann::json{{"text", sentence}}.dump() + "\n";
  }
  return text;
}

}  // namespace

std::string ReadAll(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<nlohmann::json> Outcome::Of(const std::string& type) const {
  std::vector<nlohmann::json> found;
  for (const nlohmann::json& event : events) {
    if (event.value("type", "") == type) found.push_back(event);
  }
  return found;
}

nlohmann::json Outcome::Last(const std::string& type) const {
  const std::vector<nlohmann::json> found = Of(type);
  if (!found.empty()) return found.back();
  ADD_FAILURE() << "no event of type " << type << " in:\n" << out << err;
  return nlohmann::json::object();
}

std::map<int, double> Outcome::Losses() const {
  std::map<int, double> losses;
  for (const nlohmann::json& step : Of("step")) losses[step.at("step")] = step.at("loss");
  return losses;
}

Workspace::Workspace() {
  static std::atomic<int> count{0};
  path_ = fs::path(testing::TempDir()) /
          ("lemo_e2e_" + std::to_string(::getpid()) + "_" + std::to_string(count++));
  fs::remove_all(path_);
  fs::create_directories(path_);
  Write("train.jsonl", Rows(/*seed=*/11, /*count=*/40, 5, 22));
  Write("eval.jsonl", Rows(/*seed=*/12, /*count=*/4, 15, 22));
}

Workspace::~Workspace() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

fs::path Workspace::Model() {
  return fs::path(LEMO_SOURCE_DIR) / "tests" / "fixtures" / "stories260k";
}

std::string Workspace::Program() { return LEMO_TRAIN_BINARY; }

nlohmann::json Workspace::Spec() {
  return {{"model", {{"path", Model().string()}, {"compute_type", "float32"}}},
          {"data",
           {{"train", {{{"path", "train.jsonl"}}}},
            {"eval", {{{"path", "eval.jsonl"}}}},
            {"max_length", 64}}},
          {"tuner", {{"lora", {{"rank", 4}, {"alpha", 8}, {"targets", {"q_proj", "v_proj"}}}}}},
          {"train", {{"steps", 4}, {"batch_sequences", 2}, {"learning_rate", 0.003}, {"seed", 7}}},
          {"device", "cpu"},
          {"output", {{"dir", "out"}}}};
}

void Workspace::Write(const std::string& name, const std::string& text) const {
  fs::create_directories((path_ / name).parent_path());
  std::ofstream(path_ / name, std::ios::binary) << text;
}

fs::path Workspace::CopyModel(const std::string& name) const {
  const fs::path copy = path_ / name;
  fs::create_directories(copy);
  for (const auto& entry : fs::directory_iterator(Model())) {
    if (!entry.is_regular_file()) continue;
    const fs::path target = copy / entry.path().filename();
    fs::copy_file(entry.path(), target);
    fs::permissions(target, fs::perms::owner_write, fs::perm_options::add);
  }
  return copy;
}

std::vector<std::string> Workspace::Arguments(const nlohmann::json& spec,
                                              std::vector<std::string> args) const {
  Write("run.json", spec.dump(1));
  args.insert(args.begin(), {"run.json", "--events", "json"});
  return args;
}

Outcome Workspace::Run(const nlohmann::json& spec, std::vector<std::string> args,
                       ProcessOptions options) const {
  return RunPlain(Arguments(spec, std::move(args)), std::move(options));
}

Outcome Workspace::RunPlain(const std::vector<std::string>& args, ProcessOptions options) const {
  options.directory = path_;
  Outcome outcome;
  const auto start = Process::Clock::now();
  Process process(Program(), args, options);
  while (const auto line = process.NextLine(start + kPatience)) {
    outcome.out += *line + "\n";
    nlohmann::json event = nlohmann::json::parse(*line, nullptr, /*allow_exceptions=*/false);
    if (event.is_object()) outcome.events.push_back(std::move(event));
  }
  if (Process::Clock::now() >= start + kPatience) {
    ADD_FAILURE() << "lemo-train hangs after:\n" << outcome.out;
    process.Signal(SIGKILL);
  }
  outcome.exit_code = process.Wait();
  outcome.seconds = std::chrono::duration<double>(Process::Clock::now() - start).count();
  outcome.err = process.Errors();
  return outcome;
}

std::map<std::string, std::string> Workspace::Snapshot() const {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(path_)) {
    const std::string name = fs::relative(entry.path(), path_).string();
    files[name] = entry.is_regular_file() ? Sha256Hex(ReadAll(entry.path())) : "folder";
  }
  return files;
}

}  // namespace lemo::train
