#include "worker/train/data/rows.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/data/scratch.h"
#include "worker/train/data/utf8.h"

namespace lemo::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Row Good(const std::string& line, RowFormat named = RowFormat::kAuto) {
  Row row;
  Violations violations;
  EXPECT_TRUE(ParseRow(line, {"data.train[0]", "f.jsonl", 7}, named, &row, &violations))
      << Text(violations);
  return row;
}

TEST(RowsTest, ChatRow) {
  const Row row = Good(
      R"({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]})");
  EXPECT_EQ(row.format, RowFormat::kChat);
  EXPECT_EQ(row.line, 7);
  EXPECT_EQ(row.messages_json,
            R"([{"role":"user","content":"Hi"},{"role":"assistant","content":"Yo"}])");
  EXPECT_THAT(row.weights, IsEmpty());
  EXPECT_EQ(row.tools_json, "");
}

TEST(RowsTest, WeightsLeaveTheMessages) {
  const Row row = Good(
      R"({"messages": [{"role": "user", "content": "a"},
          {"role": "assistant", "content": "b", "weight": 0},
          {"role": "assistant", "content": "c", "weight": 1.0}]})");
  EXPECT_THAT(row.weights, ElementsAre(1, 0, 1));
  EXPECT_EQ(row.messages_json.find("weight"), std::string::npos);
}

TEST(RowsTest, ToolCallsWithNullContentAndArgumentsAsText) {
  const Row row = Good(R"({"messages": [{"role": "assistant", "content": null, "tool_calls":
      [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [2.5]}"}}]},
      {"role": "tool", "tool_call_id": "1", "content": "done"}],
      "tools": [{"type": "function", "function": {"name": "f"}}], "parallel_tool_calls": false})");
  EXPECT_THAT(row.messages_json, HasSubstr(R"("content":"")"));
  EXPECT_THAT(row.messages_json, HasSubstr(R"("arguments":{"b":1,"a":[2.5]})"));  // order kept
  EXPECT_THAT(row.called_functions, ElementsAre("f"));
  EXPECT_EQ(row.tools_json, R"([{"type":"function","function":{"name":"f"}}])");
}

TEST(RowsTest, ContentAsTextParts) {
  const Row row = Good(R"({"messages": [{"role": "assistant", "content":
      [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]})");
  EXPECT_EQ(row.messages_json, R"([{"role":"assistant","content":"ab"}])");
}

TEST(RowsTest, CompletionRows) {
  Row row = Good(R"({"prompt": "2+2=", "completion": "4", "source": "x"})");
  EXPECT_EQ(row.format, RowFormat::kCompletion);
  EXPECT_EQ(row.prompt, "2+2=");
  EXPECT_EQ(row.completion, "4");

  row = Good(R"({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
      {"role": "user", "content": "c"}], "completion": "d"})");
  EXPECT_THAT(row.messages_json, HasSubstr(R"({"role":"assistant","content":"d"}])"));
  EXPECT_EQ(row.weights.size(), 4u);
  EXPECT_EQ(row.weights[1], 0);
  EXPECT_EQ(row.weights[3], 1);

  row = Good(R"({"prompt": [{"role": "user", "content": "a"}],
                 "completion": [{"role": "assistant", "content": "b"}]})");
  EXPECT_EQ(row.weights.back(), 1);
}

TEST(RowsTest, TextRowAndExtraColumns) {
  EXPECT_EQ(Good(R"({"text": "a\nb", "id": 3})").text, "a\nb");
  // A prompt beside messages, as some published sets have it, is one more column.
  EXPECT_EQ(Good(R"({"prompt": "x", "messages": [{"role": "assistant", "content": "b"}]})").format,
            RowFormat::kChat);
}

TEST(RowsTest, NamedFormatDecides) {
  const std::string line = R"({"text": "t", "prompt": "p", "completion": "c"})";
  EXPECT_EQ(Good(line, RowFormat::kText).format, RowFormat::kText);
  EXPECT_EQ(Good(line, RowFormat::kCompletion).format, RowFormat::kCompletion);
}

struct BadRow {
  std::string line;
  std::string json_path;
  std::string reason;
};

TEST(RowsTest, FaultsNamePathAndReason) {
  const std::string a = R"({"role": "assistant", "content": "x"})";
  const auto messages = [](const std::string& list) { return "{\"messages\": [" + list + "]}"; };
  const std::vector<BadRow> cases = {
      {"{\"text\": \"a\"", "", "is not JSON: column 13: syntax error"},
      {"{\"text\": \"\\ud800\"}", "", "surrogate"},
      {"{\"text\": 1e999}", "", "is not JSON: number overflow"},
      {"\xC3\xA9", "", "last read: '\\xc3'"},
      {"\xff", "", "is not UTF-8 (byte 1 of the line)"},
      {"{\"text\": \"\xc3\"}", "", "is not UTF-8 (byte 11 of the line)"},
      {"[1]", "", "is a JSON list; one object a line is expected"},
      {"3", "", "is not a JSON object"},
      {"{}", "", "its keys are: none"},
      {R"({"question": 1, "answer": 2})", "", "its keys are: question, answer"},
      {R"({"text": "a", "text": "b"})", "text", "the key appears twice"},
      {R"({"text": "a", "messages": []})", "", "several formats (chat, text); name the file's"},
      {R"({"text": ["a"]})", "text", "must be a string, found a list"},
      {R"({"prompt": "a"})", "completion", "is missing"},
      {R"({"completion": "a"})", "prompt", "is missing"},
      {R"({"prompt": "a", "completion": ""})", "completion", "is empty"},
      {R"({"prompt": "a", "completion": null})", "completion", "must be a string, found null"},
      {R"({"prompt": [], "completion": "a"})", "prompt", "has no messages"},
      {R"({"prompt": [)" + a + R"(], "completion": [{"role": "user", "content": "a"}]})",
       "completion[0].role", "must be \"assistant\" in a completion, found \"user\""},
      {R"({"messages": "a"})", "messages", "must be a list of messages, found \"a\""},
      {R"({"messages": []})", "messages", "has no messages"},
      {messages("1"), "messages[0]", "must be an object, found 1"},
      {messages(a + R"(, {"content": "x"})"), "messages[1].role", "is missing"},
      {messages(R"({"role": "bot", "content": "x"})"), "messages[0].role", "unknown role \"bot\""},
      {messages(R"({"role": 1, "content": "x"})"), "messages[0].role", "must be a string, found 1"},
      {messages(a + R"(, {"role": "user", "role": "assistant", "content": "x"})"),
       "messages[1].role", "the key appears twice in one object"},
      {messages(R"({"role": "user"})"), "messages[0].content", "is missing"},
      {messages(R"({"role": "user", "content": null})"), "messages[0].content", "is null"},
      {messages(R"({"role": "user", "content": {}})"), "messages[0].content", "found an object"},
      {messages(R"({"role": "user", "content": [{"type": "image_url"}]})"),
       "messages[0].content[0].type", "only text parts can be trained on, found \"image_url\""},
      {messages(R"({"role": "user", "content": "x", "weight": 1})"), "messages[0].weight",
       "only an assistant message has a weight"},
      {messages(R"({"role": "assistant", "content": "x", "weight": 0.5})"), "messages[0].weight",
       "must be 0 or 1, found 0.5"},
      {messages(R"({"role": "assistant", "content": "x", "weight": "1"})"), "messages[0].weight",
       "must be 0 or 1"},
      {messages(R"({"role": "assistant", "content": "x", "wieght": 0})"), "messages[0].wieght",
       "did you mean \"weight\"?"},
      {messages(R"({"role": "assistant", "content": null, "function_call": {}})"),
       "messages[0].function_call", "use tool_calls"},
      {messages(R"({"role": "assistant", "tool_calls": {}})"), "messages[0].tool_calls",
       "must be a list"},
      {messages(R"({"role": "user", "content": "", "tool_calls": [1]})"), "messages[0].tool_calls",
       "only an assistant message calls tools"},
      {messages(R"({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]})"),
       "messages[0].tool_calls[0].function.name", "must be the function's name"},
      {messages(
           R"({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]})"),
       "messages[0].tool_calls[0].function.arguments", "is not JSON"},
      {messages(
           R"({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]})"),
       "messages[0].tool_calls[0].function.arguments", "must be an object"},
      {R"({"messages": [)" + a + R"(], "tools": {}})", "tools", "must be a list"},
      {R"({"messages": [)" + a + R"(], "tools": [{"function": {}}]})", "tools[0].function.name",
       "must be a string"},
      {R"({"messages": [)" + a + R"(], "functions": []})", "functions", "use tools"},
      {R"({"messages": [)" + a + R"(], "parallel_tool_calls": 1})", "parallel_tool_calls",
       "must be true or false"},
  };
  for (const BadRow& bad : cases) {
    Row row;
    Violations violations;
    EXPECT_FALSE(
        ParseRow(bad.line, {"data.train[0]", "f.jsonl", 7}, RowFormat::kAuto, &row, &violations))
        << bad.line;
    ASSERT_FALSE(violations.empty()) << bad.line;
    const Violation& first = violations.kept()[0];
    EXPECT_EQ(first.json_path, bad.json_path) << bad.line;
    EXPECT_THAT(first.reason, HasSubstr(bad.reason)) << bad.line;
    EXPECT_EQ(first.field, "data.train[0]");
    EXPECT_EQ(first.file, "f.jsonl");
    EXPECT_EQ(first.line, 7);
  }
}

TEST(RowsTest, HostileRowsAreRefusedQuickly) {
  Row row;
  Violations violations;
  const std::string deep(1'000'000, '[');
  EXPECT_FALSE(ParseRow("{\"text\": " + deep, {}, RowFormat::kAuto, &row, &violations));
  EXPECT_THAT(violations.kept()[0].reason, HasSubstr("nested deeper than"));
  EXPECT_EQ(violations.kept()[0].json_path.substr(0, 7), "text[0]");

  violations = {};
  std::string wide = "{\"messages\": [{\"x0\": 0";
  for (int i = 1; i < 200'000; ++i) wide += ",\"x" + std::to_string(i) + "\":0";
  EXPECT_FALSE(ParseRow(wide + "}]}", {}, RowFormat::kAuto, &row, &violations));
  EXPECT_THAT(violations.kept()[0].reason, HasSubstr("more than 10000 keys"));
  EXPECT_EQ(violations.kept()[0].json_path, "messages[0]");
}

// All rows of a file, and its violations.
struct ReadResult {
  std::vector<Row> rows;
  Violations violations;
  bool opened = false;
  bool is_book = false;
};

ReadResult ReadAll(const RowFile& file) {
  ReadResult result;
  std::optional<RowReader> reader = RowReader::Open(file, &result.violations);
  if (!reader) return result;
  result.opened = true;
  result.is_book = reader->is_book();
  Row row;
  while (!result.is_book && reader->Next(&row, &result.violations)) result.rows.push_back(row);
  return result;
}

TEST(RowReaderTest, LineNumbersBlankLinesByteOrderMarkAndCarriageReturns) {
  const Scratch scratch;
  const ReadResult read = ReadAll(
      {scratch.Write("a.jsonl", "\xEF\xBB\xBF\r\n\n{\"text\": \"a\"}\r\n  \n{\"text\": \"b\"}")});
  ASSERT_EQ(read.rows.size(), 2u) << Text(read.violations);
  EXPECT_EQ(read.rows[0].line, 3);
  EXPECT_EQ(read.rows[1].line, 5);
  EXPECT_TRUE(read.violations.empty());
}

TEST(RowReaderTest, FindsOutWhatAFileIs) {
  const Scratch scratch;
  EXPECT_TRUE(ReadAll({scratch.Write("a.txt", "Once upon\n{\"text\": 1}\n")}).is_book);
  EXPECT_TRUE(ReadAll({scratch.Write("b.txt", "{curly} prose\n")}).is_book);
  EXPECT_TRUE(ReadAll({scratch.Write("c.txt", "[1] a footnote\n")}).is_book);
  EXPECT_EQ(ReadAll({scratch.Write("d.txt", "{\"text\": \"rows in a .txt\"}\n")}).rows.size(), 1u);
  EXPECT_EQ(ReadAll({scratch.Write("e", "\n{ \"text\": \"x\"}\n")}).rows.size(), 1u);
  EXPECT_TRUE(ReadAll({scratch.Write("f.jsonl", "{\"text\": 1}"), RowFormat::kBook}).is_book);
  const ReadResult list = ReadAll({scratch.Write("g.json", "[{\"text\": \"a\"}]\n")});
  EXPECT_THAT(Text(list.violations), HasSubstr("g.json:1: is a JSON list; one object a line"));
}

TEST(RowReaderTest, PlainTextThatIsCalledRowsIsOneFault) {
  const Scratch scratch;
  const std::string path = scratch.Write("a.txt", "\nCall me\nIshmael.\n");
  const ReadResult read = ReadAll({path, RowFormat::kText, "data.train[0]"});
  EXPECT_EQ(read.violations.kept().size(), 1u);
  EXPECT_THAT(Text(read.violations), HasSubstr("a.txt:2: is plain text; rows of format text are"));
  EXPECT_THAT(Text(read.violations), HasSubstr("or name book"));
}

TEST(RowReaderTest, MixedFormatsNameTheLine) {
  const Scratch scratch;
  const std::string path = scratch.Write("a.jsonl",
                                         "{\"bad\": 1}\n{\"text\": \"a\"}\n{\"prompt\": \"a\", "
                                         "\"completion\": \"b\"}\n{\"text\": \"c\"}\n");
  ReadResult read = ReadAll({path, RowFormat::kAuto, "data.train[0]"});
  EXPECT_EQ(read.rows.size(), 2u);
  EXPECT_EQ(read.violations.total(), 2);
  EXPECT_THAT(Text(read.violations),
              HasSubstr("data.train[0]: " + path +
                        ":3: is a completion row in a file of text rows (as line 2 is)"));
  read = ReadAll({path, RowFormat::kChat});
  EXPECT_EQ(read.violations.total(), 4);
  EXPECT_THAT(Text(read.violations),
              HasSubstr(":2: is a text row in a file of chat rows (the format named for it)"));
}

TEST(RowReaderTest, WholeFileIsCheckedAndTheTotalIsExact) {
  const Scratch scratch;
  std::string content;
  for (int i = 0; i < 500; ++i) content += i % 2 == 0 ? "{\"text\": 1}\n" : "{\"text\": \"a\"}\n";
  const ReadResult read = ReadAll({scratch.Write("a.jsonl", content)});
  EXPECT_EQ(read.rows.size(), 250u);
  EXPECT_EQ(read.violations.total(), 250);
  EXPECT_EQ(read.violations.kept().size(), Violations::kKept);
  EXPECT_EQ(read.violations.kept()[1].line, 3);
}

TEST(RowReaderTest, LongLinesAreBounded) {
  const Scratch scratch;
  const std::string path = scratch.Write(
      "a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"" + std::string(2'000'000, 'x') +
                     "\"}\n{\"text\": \"b\"}\n{\"text\": \"" + std::string(1000, 'y') + "\"}");
  const ReadResult read = ReadAll({path, RowFormat::kAuto, "", /*max_line_bytes=*/100});
  ASSERT_EQ(read.rows.size(), 2u);
  EXPECT_EQ(read.rows[1].line, 3);
  EXPECT_EQ(read.violations.total(), 2);
  EXPECT_THAT(Text(read.violations), HasSubstr(":2: the line is longer than 100 bytes"));
  EXPECT_THAT(Text(read.violations), HasSubstr(":4: the line is longer than 100 bytes"));
}

TEST(RowReaderTest, FilesOfNoUse) {
  const Scratch scratch;
  EXPECT_THAT(Text(ReadAll({scratch / "none.jsonl"}).violations), HasSubstr("No such file"));
  EXPECT_THAT(Text(ReadAll({scratch / ""}).violations), HasSubstr("Is a directory"));
  EXPECT_THAT(Text(ReadAll({"/dev/null"}).violations), HasSubstr("is not a regular file"));
  EXPECT_THAT(Text(ReadAll({scratch.Write("e.txt", "")}).violations), HasSubstr("is empty"));
  EXPECT_THAT(Text(ReadAll({scratch.Write("b.jsonl", " \n\n")}).violations), HasSubstr("is empty"));
}

TEST(Utf8Test, KnowsWellFormedText) {
  EXPECT_EQ(FindInvalidUtf8("plain, \xC3\xA9, \xE2\x82\xAC, \xF0\x9F\x98\x80"),
            std::string_view::npos);
  const std::vector<std::string> bad = {"\x80",
                                        "\xC0\xAF",
                                        "\xE0\x80\xAF",
                                        "\xED\xA0\x80",
                                        "\xF4\x90\x80\x80",
                                        "\xF0\x8F\xBF\xBF",
                                        "\xE2\x82",
                                        "\xF8\x88\x80\x80\x80"};
  for (const std::string& text : bad) EXPECT_EQ(FindInvalidUtf8("ab" + text), 2u);
}

TEST(Utf8Test, CutsBetweenCharacters) {
  EXPECT_EQ(WholeUtf8Prefix("ab\xE2\x82"), 2u);
  EXPECT_EQ(WholeUtf8Prefix("ab\xE2\x82\xAC"), 5u);
  EXPECT_EQ(WholeUtf8Prefix(""), 0u);
  EXPECT_EQ(Utf8Prefix("a\xE2\x82\xAC", 3), "a");
}

}  // namespace
}  // namespace lemo::train
