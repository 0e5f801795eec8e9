// What is wrong with a source, and what to do about it. Pure.

/** @typedef {{title: string, text: string}} Problem */

/** @type {Record<string, string>} */
const WHAT = { camera: "camera", screen: "screen", film: "film", picture: "picture", sample: "sample" };

/**
 * @param {unknown} error As the browser threw it.
 * @param {string} kind Of the source that was asked for.
 * @param {{hostname: string, port: string}} place Of the page.
 * @returns {Problem}
 */
export function problemOf(error, kind, { hostname, port }) {
  const name = nameOf(error);
  const detail = hasWords(error) ? String(error.message) : String(error);
  if (name === "InsecureContextError") {
    return {
      title: `Browsers keep the ${WHAT[kind]} for secure pages`,
      text:
        `This page came over plain http from ${hostname}. Open it over https, or, on the machine that runs the ` +
        `service, as http://localhost${port ? `:${port}` : ""}. The sample and files work here too.`,
    };
  }
  if (name === "NoPictureError") {
    return {
      title: "This file has no picture",
      text: "It plays, but there is only sound in it. Open a film or a picture, or try the sample.",
    };
  }
  if (name === "NoFilmError") {
    return { title: "This is no video", text: `${detail} Browsers play MP4 (H.264), WebM and most pictures.` };
  }
  if (name === "BrokenPictureError") {
    return {
      title: "This picture cannot be shown",
      text: `Browsers show JPEG, PNG, WebP, GIF and AVIF. Convert it, or open another one. (${detail})`,
    };
  }
  if (kind === "camera") return cameraProblem(name, detail);
  if (kind === "screen") return screenProblem(name, detail);
  return {
    title: `This ${WHAT[kind] ?? "file"} cannot be shown`,
    text:
      "Browsers play MP4 (H.264), WebM and most pictures. Convert it, for example with " +
      `ffmpeg -i film.mov film.webm, or open another one. (${detail})`,
  };
}

/**
 * @param {string} name
 * @param {string} detail
 * @returns {Problem}
 */
function cameraProblem(name, detail) {
  switch (name) {
    case "NotAllowedError":
    case "SecurityError":
      return /system/i.test(detail)
        ? {
            title: "The system keeps the camera from this browser",
            text: "Allow the browser to use the camera in the system's privacy settings, then try again.",
          }
        : {
            title: "The camera was refused",
            text:
              "Allow it for this page: press the camera sign (or the sign before the address) in the address bar, " +
              "choose Allow, then try again.",
          };
    case "NotFoundError":
      return {
        title: "No camera was found",
        text: "Plug one in and try again. Without one, try the sample, or open a film or a picture.",
      };
    case "NotReadableError":
    case "AbortError":
      return {
        title: "The camera is busy",
        text: `Another program or page uses it. Close that, then try again. (${detail})`,
      };
    case "OverconstrainedError":
      return {
        title: "That camera is gone",
        text: "The chosen camera is not there any more, or cannot do what was asked. Try again with another.",
      };
    case "NotSupportedError":
      return { title: "This browser offers no camera", text: "Use another browser, the sample, or a file." };
    default:
      return { title: "The camera does not start", text: `Try again, or use the sample or a file. (${detail})` };
  }
}

/**
 * @param {string} name
 * @param {string} detail
 * @returns {Problem}
 */
function screenProblem(name, detail) {
  if (name === "NotAllowedError") {
    return {
      title: "The screen is not shared",
      text: "Nothing was chosen. Press Share screen again and choose a window.",
    };
  }
  if (name === "NotSupportedError") {
    return {
      title: "This browser cannot share the screen",
      text: "Phones mostly cannot. Use a desktop browser, the camera, the sample, or a file.",
    };
  }
  return { title: "The screen is not shared", text: `Try again. (${detail})` };
}

/**
 * Not every browser's `OverconstrainedError` is an `Error`.
 * @param {unknown} error
 */
export function nameOf(error) {
  return typeof error === "object" && error !== null && "name" in error ? String(error.name) : "";
}

/**
 * @param {unknown} error
 * @returns {error is {message: unknown}}
 */
function hasWords(error) {
  return typeof error === "object" && error !== null && "message" in error;
}
