// Protobuf messages as JSON that people and tools read: names of the proto, all numbers as numbers,
// enums by name, bytes as base64, google.protobuf.Timestamp as RFC 3339 ("2026-01-31T17:05:09Z").
//
// Protobuf's own converter prints 64-bit numbers as strings, stops at the first fault when reading,
// and leaves out what is zero; hence these two.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "common/located_json.h"
#include "common/violations.h"
#include "google/protobuf/message.h"
#include "nlohmann/json.hpp"

namespace lemo {

struct MessageToJsonOptions {
  // Also fields that are absent or empty; an absent Timestamp is null. Otherwise only what is
  // present, numbers without presence, and enums other than their zero.
  bool everything = false;
  // A number that is not finite becomes null, which every JSON reader takes, instead of "NaN",
  // "Infinity" or "-Infinity", which ReadMessage takes back.
  bool non_finite_as_null = false;
};

nlohmann::ordered_json MessageToJson(const google::protobuf::Message& message,
                                     const MessageToJsonOptions& options);

// Reads proto3 JSON into messages of the types that our protos use (string, bytes, bool, 32-bit and
// 64-bit signed integers, uint32, double, enums, messages, lists, maps with string keys). Goes on
// after a fault: every unknown field, wrong type, duplicate key, number out of range and second
// member of a oneof adds a violation with its path, and the rest is read.
class MessageReader {
 public:
  // `root` is where paths start; a field that is unknown here but known elsewhere under it is
  // pointed to. All must outlive the reader.
  MessageReader(std::string file, const google::protobuf::Descriptor* root, Violations* violations);

  // Sets the fields that `json` names; `path` is the message's own path, "" for the root.
  void ReadMessage(const LocatedJson& json, const std::string& path,
                   google::protobuf::Message* message);

  // Replaces one field (all of a list or map); null clears it.
  void ReadField(const LocatedJson& json, const std::string& path,
                 const google::protobuf::FieldDescriptor* field,
                 google::protobuf::Message* message);

  // Appends to a list.
  void AddElement(const LocatedJson& json, const std::string& path,
                  const google::protobuf::FieldDescriptor* field,
                  google::protobuf::Message* message);

  // Sets one entry of a map field; `json.key` is the key.
  void SetMapEntry(const LocatedJson& json, const std::string& path,
                   const google::protobuf::FieldDescriptor* field,
                   google::protobuf::Message* message);

  // The field of that snake_case or lowerCamel name; when there is none, null and a violation that
  // names the nearest.
  const google::protobuf::FieldDescriptor* FindField(const google::protobuf::Descriptor* type,
                                                     const std::string& name,
                                                     const std::string& path, int64_t line);

  void Fault(const std::string& path, int64_t line, std::string reason);

 private:
  void ReadValue(const LocatedJson& json, const std::string& path,
                 const google::protobuf::FieldDescriptor* field,
                 google::protobuf::Message* message);

  const std::string file_;
  const google::protobuf::Descriptor* const root_;
  Violations* const violations_;
};

// Reads a file of `bytes_max` bytes at most, written by a program. NotFound without one;
// InvalidArgument, with file, line and fault, for one that is something else.
absl::Status ReadMessageFile(const std::filesystem::path& path, int64_t bytes_max,
                             google::protobuf::Message* message);

// "train" + "steps" -> "train.steps".
std::string JoinPath(const std::string& path, const std::string& name);
// "data.train" + 0 -> "data.train[0]".
std::string ElementPath(const std::string& path, size_t index);
// "tuner.lora.rank_pattern" + "q_proj" -> tuner.lora.rank_pattern["q_proj"]
std::string EntryPath(const std::string& path, const std::string& key);

}  // namespace lemo
