// Data sets, JSON lines and prompt templates: what is read, and every way they can be wrong.
#include "profiler/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "profiler/json_lines.h"
#include "profiler/prompt.h"
#include "support/hash.h"

namespace ds {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class InFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("ds-dataset-" + std::to_string(getpid()) + "-" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string write(const std::string& text) {
    std::string path = folder_ / "file";
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  std::filesystem::path folder_;
};

class DatasetFile : public InFolder {
 protected:
  /// The message of a failed read; empty where it succeeded.
  std::string failure(const std::string& text, Code code) {
    Result<Dataset> data = read_dataset(write(text));
    if (data.ok()) return "";
    EXPECT_EQ(data.status().code(), code) << data.status().message();
    return data.status().message();
  }
};

const std::string kItem =
    R"({"context":"Ann is 5.","input":"How old?","answers":["5","five"],"dataset":"hotpotqa"})";
std::string item_with(const std::string& fields) {
  return R"({"context":"c","input":"i","answers":["x"],"dataset":"lcc")" + fields + "}\n";
}

TEST_F(DatasetFile, ReadsLongBenchsFields) {
  std::string text =
      "\xEF\xBB\xBF" + kItem + "\r\n\r\n  \n" +
      R"({"input":"","context":"x = 1","answers":["y"],"length":3,"dataset":"lcc","language":"python","all_classes":null,"_id":"ab1","more":[1]})" +
      "\n" +
      R"({"context":"c","input":"i","answers":["x",""],"dataset":"mine","metric":"exact_match","_id":7})";
  std::string path = write(text);
  Result<Dataset> data = read_dataset(path);
  ASSERT_TRUE(data.ok()) << data.status().message();
  EXPECT_EQ(data->path, path);
  EXPECT_EQ(data->sha256, sha256_hex(text));
  ASSERT_EQ(data->items.size(), 3u);
  const Item& first = data->items[0];
  EXPECT_EQ(first.context, "Ann is 5.");
  EXPECT_EQ(first.input, "How old?");
  EXPECT_THAT(first.answers, ElementsAre("5", "five"));
  EXPECT_EQ(first.task, "hotpotqa");
  EXPECT_EQ(first.metric, Metric::kQaF1);
  EXPECT_EQ(first.line, 1);
  EXPECT_EQ(first.id, "");
  EXPECT_EQ(data->items[1].metric, Metric::kCodeSim);
  EXPECT_EQ(data->items[1].line, 4);
  EXPECT_EQ(data->items[1].id, "ab1");
  EXPECT_EQ(data->items[2].where, path + ":5");
  EXPECT_EQ(data->items[2].metric, Metric::kExactMatch);
  EXPECT_EQ(data->items[2].id, "7");
}

TEST_F(DatasetFile, AnItemsOwnMetricGoesFirst) {
  std::string path = write(item_with(R"(,"metric":"rouge_l")"));
  auto all_exact = [](std::string_view) { return Metric::kExactMatch; };
  EXPECT_EQ(read_dataset(path, all_exact)->items[0].metric, Metric::kRougeL);
  EXPECT_EQ(read_dataset(write(item_with("")), all_exact)->items[0].metric, Metric::kExactMatch);
}

TEST_F(DatasetFile, SaysWhatIsWrongWhere) {
  EXPECT_THAT(failure("", Code::kCorrupt),
              HasSubstr("is empty; expected JSON lines, each with the fields context"));
  EXPECT_THAT(failure("\n \n", Code::kCorrupt), HasSubstr("is empty"));
  EXPECT_THAT(failure(kItem + "\n{\"context\": \n", Code::kCorrupt),
              AllOf(HasSubstr("file:2' is not valid JSON"), HasSubstr("at column 13"),
                    HasSubstr("expected one JSON object with the fields context")));
  EXPECT_THAT(failure("[" + kItem + "]", Code::kCorrupt),
              AllOf(HasSubstr("file:1: found ["), HasSubstr("expected a JSON object with the fields context"),
                    HasSubstr("a JSON list, not JSON lines (jq -c '.[]' FILE makes lines of a list)")));
  EXPECT_THAT(failure(R"({"context":"c","input":"i","answers":["x"]})", Code::kCorrupt),
              HasSubstr("file:1: key 'dataset' is missing; expected the fields context, input, answers"));
  EXPECT_THAT(failure(item_with(R"(,"input":3)"), Code::kInvalidArgument),
              HasSubstr("file:1: 'input' is 3, expected a string"));
  EXPECT_THAT(failure(item_with(R"(,"answers":"x")"), Code::kInvalidArgument),
              HasSubstr("'answers' is \"x\", expected a list"));
  EXPECT_THAT(failure(item_with(R"(,"answers":["x",null])"), Code::kInvalidArgument),
              HasSubstr("file:1: answers[1] is not a string"));
  EXPECT_THAT(failure(item_with(R"(,"answers":[])"), Code::kInvalidArgument),
              HasSubstr("file:1: answers: found no answer, expected at least one"));
  EXPECT_THAT(failure(item_with(R"(,"answers":["",""])"), Code::kInvalidArgument),
              HasSubstr("found empty answers only"));
  EXPECT_THAT(failure(item_with(R"(,"context":"")"), Code::kInvalidArgument),
              HasSubstr("file:1: context: empty; expected the text"));
  EXPECT_THAT(failure(item_with(R"(,"_id":[])"), Code::kInvalidArgument),
              HasSubstr("'_id' is [], expected a string"));
  EXPECT_THAT(failure(item_with(R"(,"metric":"f1")"), Code::kInvalidArgument),
              HasSubstr("file:1: metric: unknown metric 'f1'; expected one of qa_f1"));
  EXPECT_THAT(failure(item_with(R"(,"dataset":"mine")"), Code::kInvalidArgument),
              HasSubstr("file:1: dataset: data set 'mine' has no known metric; give a metric in the prompt"));
  EXPECT_THAT(failure(item_with(R"(,"dataset":"trec","all_classes":null)"), Code::kInvalidArgument),
              HasSubstr("file:1: all_classes: found none, expected the names of all classes"));
  EXPECT_THAT(failure(item_with(R"(,"all_classes":["x",3])"), Code::kInvalidArgument),
              HasSubstr("file:1: all_classes[1] is not a string"));
  EXPECT_THAT(failure(item_with(R"(,"dataset":"passage_retrieval_en")"), Code::kInvalidArgument),
              HasSubstr("file:1: answers[0]: found 'x', expected one like 'Paragraph 7'"));
  EXPECT_THAT(failure(item_with("") + "\n" + item_with(R"(,"metric":"qa_f1")"), Code::kInvalidArgument),
              HasSubstr("file:3: metric: data set 'lcc' is scored by qa_f1 here and by code_sim in line 1"));
  EXPECT_THAT(failure(kItem + "\n{\"context\":\"caf\xE9\"}", Code::kCorrupt),
              HasSubstr("file:2: byte 0xe9 at column 16 is not UTF-8"));
  EXPECT_THAT(failure("\xFF\xFE{\0", Code::kCorrupt), HasSubstr("byte 0xff at column 1 is not UTF-8"));
  EXPECT_THAT(failure(std::string(5000, '['), Code::kCorrupt), HasSubstr("nests lists or objects"));
  EXPECT_EQ(read_dataset("/nowhere").status().code(), Code::kNotFound);
}

TEST_F(DatasetFile, RefusesLongBenchV2ByName) {
  EXPECT_THAT(
      failure(
          R"({"_id":"1","domain":"d","sub_domain":"s","difficulty":"easy","length":"short","question":"q",)"
          R"("choice_A":"a","choice_B":"b","choice_C":"c","choice_D":"d","answer":"A","context":"c"})",
          Code::kUnsupported),
      AllOf(HasSubstr("file:1: found the fields question and choice_A to choice_D: this is LongBench-v2"),
            HasSubstr("Write question and choices into 'input'")));
}

TEST_F(DatasetFile, ReadsClasses) {
  Result<Dataset> data = read_dataset(write(item_with(R"(,"dataset":"trec_e","all_classes":["x","y"])")));
  ASSERT_TRUE(data.ok()) << data.status().message();
  EXPECT_EQ(data->items[0].metric, Metric::kClassification);
  EXPECT_THAT(data->items[0].classes, ElementsAre("x", "y"));
}

TEST_F(DatasetFile, WordsAreLoadedWhereAMetricNeedsThem) {
  auto words = [&](const std::string& dataset, const std::string& folder) {
    Result<Dataset> data = read_dataset(write(item_with(R"(,"dataset":")" + dataset + "\"")));
    EXPECT_TRUE(data.ok()) << data.status().message();
    return load_words({&*data, 1}, folder);
  };
  EXPECT_EQ(*words("hotpotqa", "/nowhere"), nullptr);
  EXPECT_NE(*words("vcsum", DS_SOURCE_DIR "/tests/golden/metrics/jieba"), nullptr);
  auto missing = words("dureader", "/nowhere");
  ASSERT_FALSE(missing.ok());
  EXPECT_THAT(missing.status().message(),
              AllOf(HasSubstr("file:1: data set 'dureader' is scored by rouge_l_zh"),
                    HasSubstr("/nowhere/dict.txt"), HasSubstr("python3-jieba")));
}

TEST_F(DatasetFile, RefusesAbsurdlyLongLines) {
  std::string path = write("{");
  std::filesystem::resize_file(path, static_cast<uintmax_t>(kMostLineBytes) + 1);  // a hole, not bytes
  Result<Dataset> data = read_dataset(path);
  ASSERT_FALSE(data.ok());
  EXPECT_THAT(data.status().message(),
              HasSubstr("file:1: the line has 268435457 bytes, expected at most 268435456"));
}

TEST(Lines, EndWithOrWithoutANewline) {
  auto lines = [](std::string_view text) {
    std::vector<std::string> all;
    EXPECT_TRUE(for_each_line(text, [&](std::string_view line, int64_t number) {
                  EXPECT_EQ(number, static_cast<int64_t>(all.size()) + 1);
                  all.emplace_back(line);
                  return ok_status();
                }).ok());
    return all;
  };
  EXPECT_THAT(lines("a\r\n\nb"), ElementsAre("a", "", "b"));
  EXPECT_THAT(lines("a\n"), ElementsAre("a"));
  EXPECT_THAT(lines("\n"), ElementsAre(""));
  EXPECT_TRUE(lines("").empty());
}

class PromptFile : public InFolder {
 protected:
  Result<PromptTemplates> tasks(const std::string& json) {
    return PromptTemplates::read(
        write(R"({"schema":"droidspeak.prompts","version":1,"tasks":)" + json + "}"));
  }
  PromptTemplate only(const std::string& json) {
    Result<PromptTemplates> read = tasks(R"({"*":)" + json + "}");
    EXPECT_TRUE(read.ok()) << read.status().message();
    return read.ok() ? **read->find("any") : PromptTemplate();
  }
  std::string failure(const std::string& json, Code code = Code::kInvalidArgument) {
    Result<PromptTemplates> read = tasks(json);
    if (read.ok()) return "";
    EXPECT_EQ(read.status().code(), code) << read.status().message();
    return read.status().message();
  }
};

Item an_item(std::string context, std::string input) {
  Item item;
  item.context = std::move(context);
  item.input = std::move(input);
  item.where = "d.jsonl:3";
  return item;
}

TEST_F(PromptFile, CutsWhatIsSharedFromWhatOnlyTheReceiverSees) {
  PromptTemplate t = only(R"({"prompt":"Read {{this}}:\n{context}\nQuestion: {input}\nAnswer:"})");
  Result<Prompt> p = render(t, an_item("a {input} {{b}}", "who? {context}"));
  ASSERT_TRUE(p.ok()) << p.status().message();
  EXPECT_EQ(p->context, "Read {this}:\na {input} {{b}}");
  EXPECT_EQ(p->suffix, "\nQuestion: who? {context}\nAnswer:");
  EXPECT_EQ(t.max_new_tokens, 64);
  EXPECT_EQ(t.answer_prefix, " ");
  EXPECT_EQ(t.metric, std::nullopt);
}

TEST_F(PromptFile, NeedsNoInput) {
  Result<Prompt> p = render(only(R"({"prompt":"{context}Next line:\n"})"), an_item("x", "ignored"));
  ASSERT_TRUE(p.ok());
  EXPECT_EQ(p->suffix, "Next line:\n");
}

TEST_F(PromptFile, ReadsAllKeysByTask) {
  std::string text =
      R"({"schema":"droidspeak.prompts","version":1,"tasks":{"qa":{"prompt":"{context}{input}","max_new_tokens":8,"metric":"exact_match","answer_prefix":"","stop":["\n","Q:"],"first_line":true}}})";
  Result<PromptTemplates> read = PromptTemplates::read(write(text));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->sha256(), sha256_hex(text));
  const PromptTemplate& t = **read->find("qa");
  EXPECT_EQ(t.max_new_tokens, 8);
  EXPECT_EQ(t.metric, Metric::kExactMatch);
  EXPECT_EQ(t.answer_prefix, "");
  EXPECT_THAT(t.stop, ElementsAre("\n", "Q:"));
  EXPECT_EQ(t.first_line, true);
  EXPECT_EQ(read->metric("qa"), Metric::kExactMatch);
  EXPECT_EQ(read->metric("samsum"), Metric::kRougeL);
  EXPECT_EQ(read->metric("other"), std::nullopt);
  Result<const PromptTemplate*> other = read->find("other");
  ASSERT_FALSE(other.ok());
  EXPECT_THAT(other.status().message(),
              HasSubstr("no prompt for data set 'other' and none for '*'; found qa"));
}

TEST_F(PromptFile, AStarIsForTheOthers) {
  Result<PromptTemplates> read =
      tasks(R"({"qa":{"prompt":"{context}1"},"*":{"prompt":"{context}2","metric":"qa_f1"}})");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ((*read->find("qa"))->before_input, "1");
  EXPECT_EQ((*read->find("x"))->before_input, "2");
  EXPECT_EQ(read->metric("x"), Metric::kQaF1);
  EXPECT_EQ(read->metric("qa"), std::nullopt);
}

TEST_F(PromptFile, SaysWhatIsWrongWhere) {
  auto prompt = [&](const std::string& text) { return failure(R"({"qa":{"prompt":")" + text + "\"}}"); };
  EXPECT_THAT(prompt("{input}"), AllOf(HasSubstr("file: tasks: qa: prompt: found {input} before {context}; "
                                                 "expected {context} once"),
                                       HasSubstr("doubled: {{ }}")));
  EXPECT_THAT(prompt("Q:"), HasSubstr("found no {context}"));
  EXPECT_THAT(prompt("{context}"), HasSubstr("found nothing after {context}"));
  EXPECT_THAT(prompt("{context}{context}x"), HasSubstr("a second {context}"));
  EXPECT_THAT(prompt("{context}{input}{input}"), HasSubstr("a second {input}"));
  EXPECT_THAT(prompt("{context}{question}"), HasSubstr("found '{question}' at byte 9"));
  EXPECT_THAT(prompt("{context} {"), HasSubstr("found '{' at byte 10"));
  EXPECT_THAT(prompt("{context} }"), HasSubstr("found '}' at byte 10"));
  auto with = [&](const std::string& more) {
    return failure(R"({"qa":{"prompt":"{context}x",)" + more + "}}");
  };
  EXPECT_THAT(with(R"("max_tokens":8)"),
              HasSubstr("file: tasks: qa: unknown key 'max_tokens'; expected prompt"));
  EXPECT_THAT(with(R"("max_new_tokens":0)"),
              HasSubstr("'max_new_tokens' is 0, expected an integer in [1, 1048576]"));
  EXPECT_THAT(with(R"("metric":"f1")"), HasSubstr("file: tasks: qa: metric: unknown metric 'f1'"));
  EXPECT_THAT(with(R"("stop":"x")"), HasSubstr("'stop' is \"x\", expected a list"));
  EXPECT_THAT(with(R"("stop":["a",""])"), HasSubstr("qa: stop[1]: found \"\", expected a text"));
  EXPECT_THAT(with(R"("first_line":1)"), HasSubstr("'first_line' is 1, expected true or false"));
  EXPECT_THAT(failure("{}"), HasSubstr("file: tasks: empty; expected a template"));
  EXPECT_THAT(failure(R"({"qa":{}})", Code::kCorrupt), HasSubstr("file: tasks: qa: key 'prompt' is missing"));
  EXPECT_THAT(failure(R"({"qa":[]})", Code::kCorrupt),
              HasSubstr("file: tasks: qa: found [], expected a JSON object"));
  EXPECT_THAT(failure(R"({},"task":{})"), HasSubstr("unknown key 'task'; expected schema, version, tasks"));
  EXPECT_EQ(PromptTemplates::read(write(R"({"schema":"x","version":1})")).status().code(), Code::kMismatch);
  EXPECT_EQ(PromptTemplates::read(write(R"({"schema":"droidspeak.prompts","version":2})")).status().code(),
            Code::kUnsupported);
}

TEST_F(PromptFile, ReadsLongBenchsOwnPrompts) {
  const std::string text =
      R"({"hotpotqa":"Read.\n{context}\n\nQuestion: {input}\nAnswer:","lcc":"Complete:\n{context}Next line of code:\n",)"
      R"("dureader":"文章：{context}\n问题：{input}\n回答："})";
  Result<PromptTemplates> read = PromptTemplates::read(write(text));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->sha256(), sha256_hex(text));
  EXPECT_EQ((*read->find("hotpotqa"))->before_context, "Read.\n");
  EXPECT_EQ(*read->find("hotpotqa_e"), *read->find("hotpotqa"));
  EXPECT_EQ(read->metric("dureader"), Metric::kRougeLZh);
  EXPECT_THAT(read->find("trec").status().message(), HasSubstr("no prompt for data set 'trec'"));
  // What a reference answer begins with depends on what its prompt ends with.
  auto reference = [&](const std::string& task) {
    Item item = an_item("c", "q");
    item.answers = {"x"};
    const PromptTemplate& t = **read->find(task);
    return reference_text(t, *render(t, item), item);
  };
  EXPECT_EQ(reference("hotpotqa"), " x");
  EXPECT_EQ(reference("lcc"), "x");
  EXPECT_EQ(reference("dureader"), "x");
  EXPECT_THAT(PromptTemplates::read(write(R"({"qa":"{context}","x":3})")).status().message(),
              HasSubstr("schema"));
  EXPECT_THAT(PromptTemplates::read(write(R"({"qa":"Q: {question}"})")).status().message(),
              HasSubstr("file: qa: found '{question}' at byte 3"));
}

TEST_F(PromptFile, AFileSaysHowLongAnswersMayBe) {
  Result<PromptTemplates> prompts = PromptTemplates::read(write(R"({"qa":"{context}1","lcc":"{context}2"})"));
  ASSERT_TRUE(prompts.ok()) << prompts.status().message();
  Item item = an_item("c", "q");
  item.task = "qa";
  std::vector<Dataset> data(1);
  data[0].items = {item};
  EXPECT_THAT(check_max_new_tokens(*prompts, data).message(),
              AllOf(HasSubstr("d.jsonl:3: '"), HasSubstr("does not say how long an answer to 'qa' may be"),
                    HasSubstr("dataset2maxlen.json by --max-new-tokens")));
  const std::string before = prompts->sha256(), lengths = R"({"qa":32,"other":5})";
  ASSERT_TRUE(prompts->set_max_new_tokens(write(lengths)).ok());
  EXPECT_EQ((*prompts->find("qa"))->max_new_tokens, 32);
  EXPECT_EQ(prompts->sha256(), sha256_hex(before + "\n" + lengths));
  EXPECT_TRUE(check_max_new_tokens(*prompts, data).ok());
  data[0].items[0].task = "lcc";
  EXPECT_FALSE(check_max_new_tokens(*prompts, data).ok());
  ASSERT_TRUE(prompts->set_max_new_tokens("7").ok());
  EXPECT_EQ((*prompts->find("lcc"))->max_new_tokens, 7);
  PromptTemplates builtin = PromptTemplates::builtin();
  ASSERT_TRUE(builtin.set_max_new_tokens(write(lengths)).ok());
  EXPECT_EQ((*builtin.find("qa"))->max_new_tokens, 32);
  EXPECT_EQ((*builtin.find("more"))->max_new_tokens, 64);
  EXPECT_THAT(builtin.set_max_new_tokens("0").message(), HasSubstr("0 new tokens; expected 1 to 1048576"));
  EXPECT_THAT(builtin.set_max_new_tokens(write(R"({"qa":"x"})")).message(), HasSubstr("'qa' is \"x\""));
  EXPECT_EQ(builtin.set_max_new_tokens("/nowhere").code(), Code::kNotFound);
}

TEST_F(PromptFile, SomeTasksAreForTheChatTemplate) {
  PromptTemplate t = only(R"({"prompt":"{context}x"})");
  EXPECT_TRUE(wants_chat(t, "hotpotqa"));
  EXPECT_TRUE(wants_chat(t, "mine"));
  EXPECT_FALSE(wants_chat(t, "lcc_e"));
  EXPECT_TRUE(wants_chat(only(R"({"prompt":"{context}x","chat":true})"), "lcc"));
  EXPECT_FALSE(wants_chat(only(R"({"prompt":"{context}x","chat":false})"), "hotpotqa"));
}

TEST_F(PromptFile, PromptsGoThroughTheChatTemplate) {
  std::string path = write(
      "<s>{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}[assistant]{{ '\\n' }}");
  auto chat = ChatTemplate::read(path, folder_);
  ASSERT_TRUE(chat.ok()) << chat.status().message();
  auto shared = std::make_shared<const ChatTemplate>(std::move(*chat));
  PromptTemplates prompts = PromptTemplates::builtin();
  ASSERT_TRUE(prompts.set_chat(shared, "Be brief.", std::nullopt).ok());
  EXPECT_NE(prompts.sha256(), PromptTemplates::builtin().sha256());
  Item item = an_item(" Some text. ", "Who? ");
  item.task = "mine";
  item.answers = {"Ann"};
  const PromptTemplate& t = **prompts.find("mine");
  Result<Prompt> p = prompts.render(t, item);
  ASSERT_TRUE(p.ok()) << p.status().message();
  EXPECT_TRUE(p->templated);
  EXPECT_EQ(p->context, "<s>[system]Be brief.[user]Some text. ");
  EXPECT_EQ(p->suffix, "Who?[assistant]\n");
  EXPECT_EQ(reference_text(t, *p, item), "Ann");
  item.task = "lcc";  // LongBench asks for code without a template
  p = prompts.render(t, item);
  ASSERT_TRUE(p.ok());
  EXPECT_FALSE(p->templated);
  EXPECT_EQ(p->context, " Some text. ");
  EXPECT_EQ(reference_text(t, *p, item), " Ann");

  PromptTemplates others = PromptTemplates::builtin();
  ASSERT_TRUE(others.set_chat(shared, "Be long.", std::nullopt).ok());
  EXPECT_NE(prompts.sha256(), others.sha256());
}

TEST(BuiltinPrompt, IsContextAndInput) {
  const PromptTemplates& builtin = PromptTemplates::builtin();
  const PromptTemplate& t = **builtin.find("anything");
  EXPECT_EQ(builtin.name(), "builtin");
  EXPECT_EQ(builtin.sha256().size(), 64u);
  EXPECT_EQ(builtin.metric("lcc"), Metric::kCodeSim);
  EXPECT_EQ(t.max_new_tokens, 64);
  Result<Prompt> p = render(t, an_item("c", "i"));
  ASSERT_TRUE(p.ok());
  EXPECT_EQ(p->context, "c");
  EXPECT_EQ(p->suffix, "i");
  Result<Prompt> empty = render(t, an_item("c", ""));
  ASSERT_FALSE(empty.ok());
  EXPECT_THAT(empty.status().message(), HasSubstr("d.jsonl:3: nothing follows the context"));
}

TEST(CutAnswer, EndsBeforeTheFirstStop) {
  PromptTemplate t;
  EXPECT_EQ(cut_answer(t, "qa", "a\nb"), "a\nb");
  EXPECT_EQ(cut_answer(t, "triviaqa", "\na\nb"), "a");
  t.first_line = false;
  EXPECT_EQ(cut_answer(t, "triviaqa", "\na\nb"), "\na\nb");
  t.stop = {"Q:", "b"};
  EXPECT_EQ(cut_answer(t, "qa", "a\nb Q:"), "a\n");
  t.first_line = true;
  EXPECT_EQ(cut_answer(t, "qa", "a\nb Q:"), "a");
  EXPECT_EQ(cut_answer(t, "qa", "Q:"), "");
}

}  // namespace
}  // namespace ds
