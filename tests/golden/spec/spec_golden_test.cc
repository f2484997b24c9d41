// The run spec that the README shows, and the wire format of specs and events.

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "google/protobuf/descriptor.h"
#include "gtest/gtest.h"
#include "lemo/v1/run_event.pb.h"
#include "tests/support/golden.h"
#include "worker/train/spec/run_options.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

constexpr char kFields[] = "tests/golden/spec/fields.txt";

std::string LineOf(const FieldDescriptor* field) {
  std::string type =
      field->message_type() ? field->message_type()->full_name() : field->type_name();
  std::string label = field->is_repeated() ? "repeated " : field->has_presence() ? "optional " : "";
  std::string oneof;
  if (field->real_containing_oneof()) oneof = " in " + field->real_containing_oneof()->name();
  return field->full_name() + " = " + std::to_string(field->number()) + ": " + label + type + oneof;
}

void AppendFields(const Descriptor* type, std::vector<std::string>* lines) {
  for (int i = 0; i < type->field_count(); ++i) lines->push_back(LineOf(type->field(i)));
  for (int i = 0; i < type->nested_type_count(); ++i) AppendFields(type->nested_type(i), lines);
}

std::vector<std::string> CurrentFields() {
  std::vector<std::string> lines;
  for (const auto* file :
       {lemo::v1::RunSpec::descriptor()->file(), lemo::v1::RunEvent::descriptor()->file()}) {
    for (int i = 0; i < file->message_type_count(); ++i) {
      AppendFields(file->message_type(i), &lines);
    }
  }
  return lines;
}

bool Contains(const std::vector<std::string>& lines, const std::string& line) {
  return std::find(lines.begin(), lines.end(), line) != lines.end();
}

TEST(SpecGolden, TheExamplePrintsItsEffectiveSpec) {
  RunOptions options;
  options.mode = RunOptions::Mode::kPrintSpec;
  options.spec_file = std::string(LEMO_SOURCE_DIR) + "/tests/golden/spec/example.json";
  Violations violations;
  const lemo::v1::RunSpec spec = LoadRunSpec(options, &violations);
  EXPECT_TRUE(violations.empty()) << violations.ToStatus();
  lemo::testing::ExpectGolden("tests/golden/spec/example.effective.json",
                              RunSpecToJson(spec) + "\n");
}

TEST(SpecGolden, FieldsKeepNumbersAndTypesAndNewOnesAreRecorded) {
  const std::string path = std::string(LEMO_SOURCE_DIR) + "/" + kFields;
  std::vector<std::string> recorded;
  std::istringstream text(lemo::testing::ReadText(path));
  for (std::string line; std::getline(text, line);) recorded.push_back(line);
  ASSERT_GT(recorded.size(), 50u);

  const std::vector<std::string> current = CurrentFields();
  for (const std::string& line : recorded) {
    EXPECT_TRUE(Contains(current, line))
        << "a field was removed, renamed, renumbered or retyped: " << line
        << "\nSpecs and events already written would be misread. Add a new field instead.";
  }
  std::ofstream append;
  if (std::getenv("LEMO_UPDATE_GOLDEN")) append.open(path, std::ios::app);
  for (const std::string& line : current) {
    if (Contains(recorded, line)) continue;
    // Only ever adds: a changed field stays a failure above.
    if (append.is_open()) append << line << "\n";
    EXPECT_TRUE(append.is_open()) << "new field, run with LEMO_UPDATE_GOLDEN=1: " << line;
  }
}

}  // namespace
}  // namespace lemo::train
