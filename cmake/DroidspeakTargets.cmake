# ds_library(name SOURCES ... [PUBLIC lib ...] [PRIVATE lib ...] [INSTALL])
# A static library droidspeak::name from one folder; headers are included by their path from the repository's root.
# INSTALL exports it, with every .h of its folder that is not named *_internal.h.
function(ds_library name)
  cmake_parse_arguments(ARG "INSTALL" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(ds_${name} STATIC ${ARG_SOURCES})
  add_library(droidspeak::${name} ALIAS ds_${name})
  set_target_properties(ds_${name} PROPERTIES EXPORT_NAME ${name})
  target_include_directories(ds_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/droidspeak>)
  target_compile_features(ds_${name} PUBLIC cxx_std_20)
  target_link_libraries(ds_${name} PUBLIC ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
  ds_compile_options(ds_${name})
  if(ARG_INSTALL)
    install(TARGETS ds_${name} EXPORT droidspeakTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
    file(RELATIVE_PATH folder ${PROJECT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
    file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.h)
    list(FILTER headers EXCLUDE REGEX "_internal\\.h$")
    install(FILES ${headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/droidspeak/${folder})
  endif()
endfunction()

function(ds_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wno-missing-field-initializers)
  if(DS_SANITIZE)
    target_compile_options(${target} PUBLIC -fsanitize=${DS_SANITIZE} -fno-omit-frame-pointer)
    if(DS_SANITIZE MATCHES "undefined")  # what is found ends the program; else it is a line that nobody reads
      target_compile_options(${target} PUBLIC -fno-sanitize-recover=undefined)
    endif()
    target_link_options(${target} PUBLIC -fsanitize=${DS_SANITIZE})
  endif()
endfunction()

# For what takes long to compile and no time to run: tests' own files and tools are mostly templates of GoogleTest,
# nlohmann-json and CLI11. What computes is in libraries.
function(ds_compile_quickly target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release,RelWithDebInfo>:-O1>)
endfunction()

# ds_tool(name SOURCES ... LIBS ...): a thin main under tools/, built into bin/ and installed.
function(ds_tool name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LIBS})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
  ds_compile_options(${name})
  ds_compile_quickly(${name})
  install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

# ds_unit_test(name SOURCES ... LIBS ...): a GoogleTest program; every test case is a CTest test.
function(ds_unit_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LIBS} GTest::gtest GTest::gmock GTest::gtest_main)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
  target_compile_definitions(${name} PRIVATE DS_SOURCE_DIR="${PROJECT_SOURCE_DIR}" DS_BINARY_DIR="${PROJECT_BINARY_DIR}")
  ds_compile_options(${name})
  ds_compile_quickly(${name})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  set_property(GLOBAL APPEND PROPERTY DS_TEST_PROGRAMS $<TARGET_FILE:${name}>)
  add_test(NAME ${name} COMMAND ${name})
endfunction()
