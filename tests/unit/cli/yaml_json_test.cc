#include "cli/yaml_json.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lemo::cli {
namespace {

using ::testing::HasSubstr;

nlohmann::ordered_json Plain(const LocatedJson& json) {
  if (json.kind == LocatedJson::Kind::kScalar) return json.scalar;
  auto out = json.kind == LocatedJson::Kind::kArray ? nlohmann::ordered_json::array()
                                                    : nlohmann::ordered_json::object();
  for (const LocatedJson& child : json.children) {
    if (json.kind == LocatedJson::Kind::kArray) {
      out.push_back(Plain(child));
    } else {
      out[child.key] = Plain(child);
    }
  }
  return out;
}

std::string Converted(const std::string& yaml) {
  JsonFault fault;
  const std::optional<LocatedJson> json = ParseYaml(yaml, &fault);
  return json ? Plain(*json).dump() : std::to_string(fault.line) + ": " + fault.reason;
}

TEST(ParseYaml, ReadsScalarsByTheCoreSchema) {
  EXPECT_EQ(Converted("[1, -2, +3, 1e-4, 2.5, .5, 1., 007]"), "[1,-2,3,0.0001,2.5,0.5,1.0,7]");
  EXPECT_EQ(Converted("[true, False, null, ~, yes, no, on]"),
            R"([true,false,null,null,"yes","no","on"])");
  EXPECT_EQ(Converted("['1', \"true\", !!str 2, 1_000, 1.2.3, 0x, e5, '']"),
            R"(["1","true","2","1_000","1.2.3","0x","e5",""])");
  EXPECT_EQ(Converted("[.inf, -.inf, .nan]"), R"(["Infinity","-Infinity","NaN"])");
  EXPECT_EQ(Converted("a:\nb: {c: [x]}\n"), R"({"a":null,"b":{"c":["x"]}})");
  EXPECT_EQ(Converted(""), "null");
}

TEST(ParseYaml, KeepsLinesAndDuplicateKeys) {
  JsonFault fault;
  const std::optional<LocatedJson> json =
      ParseYaml("# a comment\na:\n  b: 1\nc:\n- x\n- y\na: 2\n", &fault);
  ASSERT_TRUE(json.has_value()) << fault.reason;
  ASSERT_EQ(json->children.size(), 3u);
  EXPECT_EQ(json->children[0].line, 2);
  EXPECT_EQ(json->children[0].children[0].line, 3);
  EXPECT_EQ(json->children[1].children[1].line, 6);
  EXPECT_EQ(json->children[2].key, "a");
  EXPECT_EQ(json->children[2].line, 7);
}

TEST(ParseYaml, AnchorsWorkAndBombsDoNot) {
  EXPECT_EQ(Converted("a: &x [1]\nb: *x\n"), R"({"a":[1],"b":[1]})");
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 9; ++i) {
    const std::string before = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + before;
    for (int j = 0; j < 9; ++j) bomb += ", " + before;
    bomb += "]\n";
  }
  EXPECT_THAT(Converted(bomb), HasSubstr("more than 100000 values, aliases counted"));
  EXPECT_THAT(Converted(std::string(80, '[') + std::string(80, ']')),
              HasSubstr("nested deeper than 64 levels"));
}

TEST(ParseYaml, NamesTheLineOfAFault) {
  EXPECT_THAT(Converted("a: 1\nb: [1\nc: 2\n"), HasSubstr(": not valid YAML: "));
  EXPECT_EQ(Converted("a: 1\nb: !!binary x\n"),
            "2: the tag tag:yaml.org,2002:binary is not used here");
  EXPECT_EQ(Converted("a: 1\n? [1, 2]\n: x\n"), "2: a key is not a plain word");
  EXPECT_THAT(Converted("a: 1\n---\nb: 2\n"), HasSubstr("a second document; only one is read"));
  EXPECT_THAT(Converted("{\"a\": 1},\n"), HasSubstr("a second document; only one is read"));
  EXPECT_EQ(Converted("a: \xff\n"), "1: not valid YAML: not UTF-8");
  EXPECT_EQ(Converted("a: 1\nb: \"\\_\"\n"),
            "2: not UTF-8 behind an escape; write \\u and four digits");
  EXPECT_EQ(Converted(std::string("a: 1\nb: x\0y\n", 12)),
            "2: not valid YAML: a control character");
}

TEST(ToYaml, IsReadBackAsItWas) {
  const nlohmann::ordered_json json = {
      {"name", "jobs/a-1"},
      {"number", "007"},
      {"norway", "no"},
      {"empty", ""},
      {"list", {1, 2.5, nullptr, true, {{"a", 1}, {"b", {"x", "y"}}}, {{1, 2}, {3}}}},
      {"nothing", nlohmann::ordered_json::array()},
      {"none", nlohmann::ordered_json::object()},
      {"lines", "a\nb: \"c\"\t#"},
      {std::string(2000, 'k'), {{std::string(2000, 'l'), {1}}}},
      {"a key: odd", 1}};
  const std::string yaml = ToYaml(json);
  EXPECT_EQ(Converted(yaml), json.dump()) << yaml;
}

TEST(ToYaml, Golden) {
  EXPECT_EQ(ToYaml({{"name", "jobs/a"},
                    {"time", "2026-01-01T00:00:00Z"},
                    {"list", {{{"a", 1}, {"b", "no"}}, "x"}},
                    {"none", nullptr}}),
            "name: jobs/a\n"
            "time: \"2026-01-01T00:00:00Z\"\n"
            "list:\n"
            "  - a: 1\n"
            "    b: \"no\"\n"
            "  - x\n"
            "none: null\n");
}

}  // namespace
}  // namespace lemo::cli
