// A conversation of OpenAI's API becomes the text that the model goes on from.
#pragma once

#include <string>

#include "serve/api_error.h"
#include "serve/loaded_fleet.h"

namespace ds {

/// Through the model's chat template. Content that is a list of text parts goes to templates that read such
/// lists as it is, and to others as one text, a line for each part.
ApiFault render_chat(const ServedModel& model, nlohmann::ordered_json conversation, std::string& out);

}  // namespace ds
