#include "worker/agent/devices.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

constexpr int kModelDepth = 3;
constexpr size_t kModelsMax = 4096;

std::string CpuModel() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (line.starts_with("model name") && colon != std::string::npos) {
      return std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
    }
  }
  return "CPU";
}

// The output of nvidia-smi; empty when there is none. `timeout` bounds a driver that hangs.
std::string AskNvidiaSmi() {
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(
      ::popen("timeout 20 nvidia-smi --query-gpu=index,name,memory.total "
              "--format=csv,noheader,nounits 2>/dev/null",
              "re"),
      [](FILE* file) { return file == nullptr ? 0 : ::pclose(file); });
  std::string text;
  if (pipe == nullptr) return text;
  char buffer[4096];
  for (size_t got; (got = std::fread(buffer, 1, sizeof(buffer), pipe.get())) > 0;) {
    text.append(buffer, got);
  }
  return text;
}

bool OnPath(const std::string& program) {
  const char* path = ::getenv("PATH");
  for (const std::string& folder :
       std::vector<std::string>(absl::StrSplit(path == nullptr ? "" : path, ':'))) {
    if (!folder.empty() && ::access((folder + "/" + program).c_str(), X_OK) == 0) return true;
  }
  return false;
}

void AddModels(const fs::path& folder, int depth, std::vector<std::string>* models) {
  std::error_code error;
  if (fs::is_regular_file(folder / "config.json", error)) {
    models->push_back(folder.string());
    return;  // what lies inside a model is part of it
  }
  if (depth == 0) return;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (models->size() >= kModelsMax) return;
    std::error_code ignored;
    if (entry->is_directory(ignored)) AddModels(entry->path(), depth - 1, models);
  }
}

}  // namespace

int64_t HostMemoryBytes() {
  return static_cast<int64_t>(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGE_SIZE);
}

absl::StatusOr<std::vector<LocalDevice>> ParseNvidiaSmi(std::string_view text, int first) {
  std::vector<LocalDevice> devices;
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(std::string(text), '\n', absl::SkipWhitespace()))) {
    std::vector<std::string> words = absl::StrSplit(line, ',');
    for (std::string& word : words) absl::StripAsciiWhitespace(&word);
    int index = -1;
    int64_t mebibytes = 0;
    if (words.size() != 3 || !absl::SimpleAtoi(words[0], &index) || index < 0 ||
        !absl::SimpleAtoi(words[2], &mebibytes) || mebibytes < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("nvidia-smi: not \"index, name, MiB\": ", line));
    }
    LocalDevice device;
    device.info.set_index(first + static_cast<int>(devices.size()));
    device.info.set_kind(lemo::v1::Device::CUDA);
    device.info.set_model(words[1]);
    device.info.set_memory_bytes(mebibytes << 20);
    device.train_name = absl::StrCat("cuda:", index);
    devices.push_back(std::move(device));
  }
  return devices;
}

int ThreadsOfCpu(int cpu_devices) {
  int threads = 0;
  const char* wanted = std::getenv("OMP_NUM_THREADS");
  if (wanted != nullptr && absl::SimpleAtoi(wanted, &threads) && threads > 0) return threads;
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, cores / std::max(1, cpu_devices));
}

std::vector<LocalDevice> ListDevices(int cpu_devices, bool cuda, int64_t cpu_memory_bytes,
                                     bool cuda_bases) {
  std::vector<LocalDevice> devices;
  const std::string model = CpuModel();
  for (int i = 0; i < cpu_devices; ++i) {
    LocalDevice device;
    device.info.set_index(i);
    device.info.set_kind(lemo::v1::Device::CPU);
    device.info.set_model(model);
    device.info.set_memory_bytes(cpu_memory_bytes / cpu_devices);
    device.info.set_shares_bases(true);
    device.info.set_threads(ThreadsOfCpu(cpu_devices));
    device.train_name = "cpu";
    devices.push_back(std::move(device));
  }
  if (!cuda || !OnPath("nvidia-smi")) return devices;
  auto found = ParseNvidiaSmi(AskNvidiaSmi(), cpu_devices);
  if (!found.ok()) {
    std::cerr << "lemo-worker: no CUDA devices are offered: " << found.status().message() << "\n";
    return devices;
  }
  for (LocalDevice& device : *found) device.info.set_shares_bases(cuda_bases);
  devices.insert(devices.end(), found->begin(), found->end());
  return devices;
}

std::vector<std::string> FindModels(const std::vector<fs::path>& roots) {
  std::vector<std::string> models;
  for (const fs::path& root : roots) AddModels(root, kModelDepth, &models);
  std::sort(models.begin(), models.end());
  models.erase(std::unique(models.begin(), models.end()), models.end());
  return models;
}

}  // namespace lemo::agent
