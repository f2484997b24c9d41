// The three forms in which answers are printed.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "google/protobuf/message.h"
#include "nlohmann/json.hpp"

namespace lemo::cli {

enum class OutputFormat { kTable, kJson, kYaml };

// Columns as wide as their widest cell, two blanks apart; the header is in capitals. Cells lose
// their control characters and line breaks.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// "name: value" lines with the values under one another; empty values are left out.
class Details {
 public:
  void Add(std::string name, std::string value);
  std::string ToString() const;

 private:
  std::vector<std::pair<std::string, std::string>> rows_;
};

// Of a message as proto3-like JSON: see common/message_json.h. Not finite numbers become null.
nlohmann::ordered_json ToJson(const google::protobuf::Message& message);

// `json` in `format`, which is kJson (indented) or kYaml.
void PrintJson(const nlohmann::ordered_json& json, OutputFormat format, std::ostream& out);

// One object on one line.
void PrintJsonLine(const nlohmann::ordered_json& json, std::ostream& out);

}  // namespace lemo::cli
