# Runs at install time: writes the units with the paths below the prefix that is being installed to.
# Where etc is follows the GNU coding standards, as GNUInstallDirs does at configure time: /etc for
# /usr, /etc/opt/NAME for /opt/NAME.
get_filename_component(prefix "${CMAKE_INSTALL_PREFIX}" ABSOLUTE)

function(full_path out relative for_usr for_opt)
  if(IS_ABSOLUTE "${relative}")
    set(path "${relative}")
  elseif(prefix STREQUAL "/usr")
    set(path "${for_usr}")
  elseif(prefix MATCHES "^/opt/")
    set(path "${for_opt}")
  else()
    set(path "${prefix}/${relative}")
  endif()
  set(${out} "${path}" PARENT_SCOPE)
endfunction()

full_path(KVL_BINDIR "${CMAKE_INSTALL_BINDIR}" "${prefix}/${CMAKE_INSTALL_BINDIR}"
  "${prefix}/${CMAKE_INSTALL_BINDIR}")
full_path(KVL_SYSCONFDIR "${CMAKE_INSTALL_SYSCONFDIR}" "/${CMAKE_INSTALL_SYSCONFDIR}"
  "/${CMAKE_INSTALL_SYSCONFDIR}${prefix}")
foreach(unit ${KVL_UNITS})
  configure_file("${KVL_UNITS_FROM}/${unit}.in" "${KVL_UNITS_TO}/${unit}" @ONLY)
endforeach()
