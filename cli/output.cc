#include "cli/output.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "cli/format.h"
#include "cli/yaml_json.h"
#include "common/message_json.h"

namespace lemo::cli {
namespace {

constexpr auto kReplaceBadUtf8 = nlohmann::json::error_handler_t::replace;

std::string Cell(const std::string& text) {
  std::string cell = Printable(text);
  std::replace(cell.begin(), cell.end(), '\n', ' ');
  return cell.empty() ? "-" : cell;
}

// UTF-8 characters, which is what a terminal shows for all but wide scripts.
size_t Width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

std::string Table::ToString() const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(Cell(row[i])));
  }
  std::string out;
  for (size_t r = 0; r < rows_.size(); ++r) {
    std::string line;
    for (size_t i = 0; i < rows_[r].size(); ++i) {
      const std::string cell = r == 0 ? absl::AsciiStrToUpper(rows_[r][i]) : Cell(rows_[r][i]);
      line += cell;
      line.append(widths[i] - Width(cell) + 2, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

void Details::Add(std::string name, std::string value) {
  if (!value.empty()) rows_.emplace_back(std::move(name), Printable(std::move(value)));
}

std::string Details::ToString() const {
  size_t width = 0;
  for (const auto& [name, value] : rows_) width = std::max(width, name.size());
  std::string out;
  for (const auto& [name, value] : rows_) {
    out += name + std::string(width - name.size() + 2, ' ');
    // Further lines of a value stand under its first.
    for (char c : value) {
      out += c;
      if (c == '\n') out.append(width + 2, ' ');
    }
    out += '\n';
  }
  return out;
}

nlohmann::ordered_json ToJson(const google::protobuf::Message& message) {
  return MessageToJson(message, {.non_finite_as_null = true});
}

void PrintJson(const nlohmann::ordered_json& json, OutputFormat format, std::ostream& out) {
  if (format == OutputFormat::kYaml) {
    out << ToYaml(json);
  } else {
    out << json.dump(2, ' ', false, kReplaceBadUtf8) << "\n";
  }
}

void PrintJsonLine(const nlohmann::ordered_json& json, std::ostream& out) {
  out << json.dump(-1, ' ', false, kReplaceBadUtf8) << "\n" << std::flush;
}

}  // namespace lemo::cli
