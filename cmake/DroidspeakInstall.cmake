# find_package(droidspeak) for the runtime and the plans: every ds_library(... INSTALL) has added itself to
# droidspeakTargets; what is left is the aggregate, the exported names and the files that find_package reads.
include(CMakePackageConfigHelpers)

# droidspeak::runtime: all that answers a request, for programs that do not want to name the parts.
add_library(ds_runtime INTERFACE)
add_library(droidspeak::runtime ALIAS ds_runtime)
set_target_properties(ds_runtime PROPERTIES EXPORT_NAME runtime)
target_link_libraries(ds_runtime INTERFACE
  droidspeak::core droidspeak::engine droidspeak::backends droidspeak::trace droidspeak::store droidspeak::model droidspeak::plans
  droidspeak::support)
install(TARGETS ds_runtime EXPORT droidspeakTargets)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/droidspeak)
install(EXPORT droidspeakTargets NAMESPACE droidspeak:: DESTINATION ${package_folder})
configure_package_config_file(cmake/droidspeakConfig.cmake.in ${PROJECT_BINARY_DIR}/droidspeakConfig.cmake
  INSTALL_DESTINATION ${package_folder} NO_SET_AND_CHECK_MACRO)
# Before 1.0 a new minor version may change interfaces.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/droidspeakConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/droidspeakConfig.cmake ${PROJECT_BINARY_DIR}/droidspeakConfigVersion.cmake
  DESTINATION ${package_folder})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
