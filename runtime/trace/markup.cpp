#include "runtime/trace/markup.h"

#include <fmt/format.h>

namespace ds {
namespace {

struct Colour {
  const char *light, *dark;
};
constexpr Colour kPalette[kColours] = {{"#222222", "#e4e4e4"}, {"#c2410c", "#fb923c"}, {"#a16207", "#eab308"},
                                       {"#4d7c0f", "#a3e635"}, {"#0f766e", "#2dd4bf"}, {"#2563eb", "#7aa7ff"},
                                       {"#7c3aed", "#b794f6"}, {"#be185d", "#f472b6"}, {"#dc2626", "#f87171"},
                                       {"#64748b", "#94a3b8"}};

constexpr std::string_view kStyle = R"x(
body{font:14px/1.45 'DejaVu Sans',Verdana,Arial,sans-serif;margin:24px auto;max-width:1240px;padding:0 16px;color:var(--ink);background:var(--paper)}
h1{font-size:20px;overflow-wrap:anywhere} h2{font-size:16px;margin-top:28px} h3{font-size:14px;margin:18px 0 4px} svg{max-width:100%;height:auto;display:block}
table{border-collapse:collapse;margin:8px 0} th,td{padding:3px 12px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{border-bottom:2px solid var(--soft)} td:first-child,th:first-child{text-align:left} dt{float:left;width:9em;color:var(--soft)} dd{margin:0 0 2px 9em;overflow-wrap:anywhere}
dl{overflow:hidden} summary{cursor:pointer;font-weight:bold;margin-top:20px} .s{overflow-x:auto} figure{margin:0} .phone{display:none} p,.n{max-width:60em} .n{color:var(--soft)}
@media (max-width:700px){.page{display:none} .phone{display:block} th,td{padding:3px 5px;font-size:12px} dt{float:none} dd{margin-left:1em}}
@media print{.page{display:block} .phone{display:none}}
)x";

std::string variables(bool dark) {
  std::string out = dark ? "--ink:#e4e4e4;--paper:#16181b;--soft:#a3a8ae;--line:#393d42"
                         : "--ink:#111;--paper:#fff;--soft:#555;--line:#ddd";
  for (size_t i = 0; i < kColours; ++i)
    out += fmt::format(";--c{}:{}", i, dark ? kPalette[i].dark : kPalette[i].light);
  return out;
}

}  // namespace

std::string escape_markup(std::string_view text, bool keep_lines) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\n':
        out += keep_lines ? '\n' : ' ';
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

std::string html_cell(std::string_view tag, std::string_view content) {
  return fmt::format("<{0}>{1}</{0}>", tag, content);
}

std::string colour_class(size_t i) { return fmt::format("c{}", i % kColours); }

std::string html_begin(std::string_view title, Theme theme, std::string_view style) {
  std::string colours = fmt::format(":root{{color-scheme:{};{}}}",
                                    theme == Theme::kLight ? "light" : "light dark", variables(false));
  if (theme == Theme::kLightAndDark)
    colours += fmt::format("\n@media (prefers-color-scheme:dark){{:root{{{}}}}}", variables(true));
  for (size_t i = 0; i < kColours; ++i) colours += fmt::format("\n.c{0}{{color:var(--c{0})}}", i);
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" "
      "content=\"width=device-width, "
      "initial-scale=1\"/><title>{0}</title>\n<style>\n{1}{2}{3}</style></head><body>\n"
      "<h1>{0}</h1>\n",
      escape_markup(title), colours, kStyle, style);
}

}  // namespace ds
