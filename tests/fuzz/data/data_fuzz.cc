// Any bytes as a row, and as a file: answered or refused, never a crash. What was accepted must be
// sound.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "worker/train/data/rows.h"
#include "worker/train/data/utf8.h"

namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

void CheckRow(const lemo::train::Row& row) {
  using lemo::train::RowFormat;
  Check(row.format == RowFormat::kChat || row.format == RowFormat::kCompletion ||
        row.format == RowFormat::kText);
  for (const std::string* text : {&row.messages_json, &row.tools_json, &row.prompt, &row.text}) {
    Check(lemo::train::FindInvalidUtf8(*text) == std::string::npos);
  }
  if (row.format == RowFormat::kChat) Check(row.messages_json.front() == '[');
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lemo::train;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  for (const RowFormat named : {RowFormat::kAuto, RowFormat::kChat, RowFormat::kCompletion}) {
    Row row;
    lemo::Violations violations;
    const bool good = ParseRow(bytes, {"data.train[0]", "f", 1}, named, &row, &violations);
    Check(good == violations.empty());
    if (good) CheckRow(row);
    // Messages must be fit for JSON and for a terminal's UTF-8.
    for (const lemo::Violation& violation : violations.kept()) {
      Check(FindInvalidUtf8(violation.ToString()) == std::string::npos);
    }
  }

  static const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("lemo_data_fuzz_" + std::to_string(::getpid()));
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  lemo::Violations violations;
  if (std::optional<RowReader> reader =
          RowReader::Open({.path = path, .max_line_bytes = 4096}, &violations)) {
    Row row;
    while (!reader->is_book() && reader->Next(&row, &violations)) CheckRow(row);
  } else {
    Check(!violations.empty());
  }
  std::filesystem::remove(path);
  return 0;
}
