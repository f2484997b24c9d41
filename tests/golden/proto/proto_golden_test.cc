// The wire format is a promise: what was published keeps its number, type and label for ever.
//
// wire.txt has a line for every field, enum value and method. A line that is gone, or says
// something else, is a broken promise and cannot be updated away: it is put right in proto/. New
// lines are added with LEMO_UPDATE_GOLDEN=1.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "google/protobuf/descriptor.h"
#include "lemo/v1/cluster_service.pb.h"
#include "lemo/v1/file_service.pb.h"
#include "lemo/v1/job_service.pb.h"
#include "lemo/v1/model_service.pb.h"
#include "lemo/v1/worker_service.pb.h"

namespace lemo {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;

std::string TypeOf(const FieldDescriptor* field) {
  if (field->message_type() != nullptr) return field->message_type()->full_name();
  if (field->enum_type() != nullptr) return field->enum_type()->full_name();
  return field->type_name();
}

void AddEnum(const EnumDescriptor* type, std::set<std::string>* lines) {
  for (int i = 0; i < type->value_count(); ++i) {
    lines->insert("enum " + type->full_name() + "." + type->value(i)->name() + " = " +
                  std::to_string(type->value(i)->number()));
  }
}

void AddMessage(const Descriptor* type, std::set<std::string>* lines) {
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    std::string line = "field " + field->full_name() + " = " + std::to_string(field->number()) +
                       (field->is_repeated() ? " repeated " : " ") + TypeOf(field);
    if (const auto* oneof = field->real_containing_oneof()) line += " in " + oneof->name();
    lines->insert(line);
  }
  for (int i = 0; i < type->nested_type_count(); ++i) AddMessage(type->nested_type(i), lines);
  for (int i = 0; i < type->enum_type_count(); ++i) AddEnum(type->enum_type(i), lines);
}

void AddFile(const FileDescriptor* file, std::set<std::string>* lines) {
  for (int i = 0; i < file->message_type_count(); ++i) AddMessage(file->message_type(i), lines);
  for (int i = 0; i < file->enum_type_count(); ++i) AddEnum(file->enum_type(i), lines);
  for (int i = 0; i < file->service_count(); ++i) {
    for (int k = 0; k < file->service(i)->method_count(); ++k) {
      const auto* method = file->service(i)->method(k);
      lines->insert(
          "method " + method->full_name() + "(" + (method->client_streaming() ? "stream " : "") +
          method->input_type()->full_name() + ") " + (method->server_streaming() ? "stream " : "") +
          method->output_type()->full_name());
    }
  }
  for (int i = 0; i < file->dependency_count(); ++i) {
    if (file->dependency(i)->package() == "lemo.v1") AddFile(file->dependency(i), lines);
  }
}

std::set<std::string> WireOf(std::initializer_list<const FileDescriptor*> files) {
  std::set<std::string> lines;
  for (const FileDescriptor* file : files) AddFile(file, &lines);
  return lines;
}

TEST(Wire, WhatWasPublishedStays) {
  const std::string path = std::string(LEMO_SOURCE_DIR) + "/tests/golden/proto/wire.txt";
  std::set<std::string> published;
  {
    std::ifstream file(path);
    ASSERT_TRUE(file.is_open()) << path;
    for (std::string line; std::getline(file, line);) published.insert(line);
  }
  const std::set<std::string> now = WireOf(
      {lemo::v1::Job::descriptor()->file(), lemo::v1::SubmitJobRequest::descriptor()->file(),
       lemo::v1::File::descriptor()->file(), lemo::v1::Model::descriptor()->file(),
       lemo::v1::Worker::descriptor()->file(), lemo::v1::AgentMessage::descriptor()->file()});
  for (const std::string& line : published) {
    EXPECT_TRUE(now.count(line)) << "published, and now gone or changed: " << line;
  }
  if (std::getenv("LEMO_UPDATE_GOLDEN") && !HasFailure()) {
    std::ofstream file(path);
    for (const std::string& line : now) file << line << "\n";
    return;
  }
  for (const std::string& line : now) {
    EXPECT_TRUE(published.count(line))
        << "new: " << line << "; if it is to be published, run with LEMO_UPDATE_GOLDEN=1";
  }
}

}  // namespace
}  // namespace lemo
